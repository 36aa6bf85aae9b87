#!/bin/bash
# patchelf of bookworm, for relocate() of lib.sh. Needs only the host's libc
# and libstdc++ of bookworm, which is bundled where the host has none.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=$2

apt_setup stable
apt_closure "$out/debs" bookworm '' patchelf
deb_version "$out/debs" patchelf >"$out/version"
unpack_closure "$out" "$out/debs"
rm -rf "$out/debs"
