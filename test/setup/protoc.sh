#!/bin/bash
# protoc of bookworm, for `make generate`; the generated files are kept in the
# tree, so neither the build nor the tests need it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' protobuf-compiler
apt_download stable "$out/debs" "libprotobuf-dev/$APT_RELEASE" # google/protobuf/*.proto
deb_version "$out/debs" protobuf-compiler >"$out/version"
unpack_closure "$out" "$out/debs"
rm -rf "$out/debs" "${out:?}/usr/share"
relocate "$out" usr/bin/protoc
check_linked "$out" usr/bin/protoc
ln -s usr/bin "$out/bin"
ln -s usr/include "$out/include"
[ -s "$out/include/google/protobuf/empty.proto" ] || die "protobuf-compiler came without its includes"
"$out/bin/protoc" --version
