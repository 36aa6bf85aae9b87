#!/bin/bash
# patchelf of bookworm, for relocate() of lib.sh. It runs on the host's libc and
# libstdc++, which a machine with apt has.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_download stable "$out/debs" "patchelf/$APT_RELEASE"
deb_version "$out/debs" patchelf >"$out/version"
unpack "$out" "$out"/debs/*.deb
rm -rf "$out/debs" "${out:?}/usr/share"
"$out/usr/bin/patchelf" --version
