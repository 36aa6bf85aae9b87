#!/bin/bash
# A minimal bookworm root by debootstrap, as base/rootfs.tar: the lowest layer
# of the images the tests build, and the ground of the build root.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
mirror=$(apt_mirror "$APT_RELEASE")
apt_download stable "$out/debs" debootstrap
deb_version "$out/debs" debootstrap
unpack "$out/debootstrap" "$out"/debs/debootstrap_*.deb

# debootstrap fetches by wget; a minimal host may have none.
if ! command -v wget >/dev/null; then
	apt_closure "$out/wget/debs" "$APT_RELEASE" '' wget
	unpack_closure "$out/wget" "$out/wget/debs"
	relocate "$out/wget" usr/bin/wget
	PATH=$out/wget/usr/bin:$PATH
fi
eval "$(apt-config shell http_proxy Acquire::http::Proxy)"
if [ -n "${http_proxy-}" ] && [ "$http_proxy" != DIRECT ]; then export http_proxy; fi

# It mounts /proc in the new root: a mount namespace takes that away with it.
DEBOOTSTRAP_DIR=$out/debootstrap/usr/share/debootstrap \
	unshare --mount --pid --fork --kill-child --mount-proc -- \
	bash "$out/debootstrap/usr/sbin/debootstrap" --variant=minbase --arch=amd64 \
	--keyring="$APT_KEYRING" --cache-dir="$out/debs" "$APT_RELEASE" "$out/root" "$mirror"

# What differs from one run to the next, or names this machine, is no part of
# an image.
root=$out/root
rm -rf "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/apt/* \
	"$root"/var/cache/ldconfig/aux-cache "$root"/var/lib/apt/lists/* \
	"$root"/var/lib/dpkg/*-old "$root"/debootstrap
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
printf 'erofsvm\n' >"$root/etc/hostname"
: >"$root/etc/apt/sources.list"

newest=$(find "$root/usr/share/doc" -name 'changelog*' -printf '%T@\n' | sort -n | tail -n 1)
tar --create --file "$out/rootfs.tar" --directory "$root" --sort=name --numeric-owner \
	--format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
	--xattrs --xattrs-include='*' --one-file-system --mtime="@${newest%.*}" --clamp-mtime .
printf 'bookworm %s\n' "$(cat "$root/etc/debian_version")" >"$out/version"
rm -rf "$root" "$out/debs" "$out/debootstrap" "$out/wget"
