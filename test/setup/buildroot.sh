#!/bin/bash
# A bookworm root with a C toolchain, in which C programs are built for the
# host whatever the host has installed. in_root (lib.sh) runs things in it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

packages=(gcc make libc6-dev autoconf automake libtool pkg-config dpkg-dev
	uuid-dev liblz4-dev liblzma-dev zlib1g-dev libzstd-dev libdeflate-dev
	libxxhash-dev libseccomp-dev)

apt_setup stable
tar --extract --file "$TOOLS/base/rootfs.tar" --directory "$out" --numeric-owner --xattrs --xattrs-include='*'
debs=$(mktemp -d "$out/debs.XXXX")
apt_closure "$debs" "$APT_RELEASE" "$out/var/lib/dpkg/status" "${packages[@]}"
in_root "$out" "$debs" sh -c 'dpkg --force-unsafe-io --install /build/*.deb'
rm -rf "$debs"

# Without the links ld takes the archives: what is built here needs no library
# of these on the host.
lib=$out/usr/lib/x86_64-linux-gnu
rm "$lib"/lib{uuid,lz4,lzma,z,zstd,deflate,xxhash,seccomp}.so

in_root "$out" "$out/tmp" gcc -dumpfullversion | sed 's/^/bookworm, gcc /' >"$out/version"
