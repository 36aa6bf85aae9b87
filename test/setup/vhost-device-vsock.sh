#!/bin/bash
# vhost-device-vsock of sid: the vsock device of a VM as a process, for hosts
# without /dev/vhost-vsock. It needs nothing but a libc of 2.34 or newer, which
# is why sid's binary runs here.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup sid
apt_download sid "$out/debs" vhost-device-vsock/sid
deb_version "$out/debs" vhost-device-vsock >"$out/version"
unpack "$out" "$out"/debs/*.deb
rm -rf "$out/debs" "${out:?}/usr/share"
"$out/usr/bin/vhost-device-vsock" --version
