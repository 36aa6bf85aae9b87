#!/bin/bash
# The guest's kernel and modules: the package that linux-image-cloud-amd64 of
# bookworm-backports stands for, unpacked, never installed. (bookworm's own 6.1
# cannot mount EROFS layers from ranges of one device.)
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
image=$(apt-cache -c "$TOOLS/apt/stable/apt.conf" show linux-image-cloud-amd64/bookworm-backports |
	sed -n 's/^Depends: *\(linux-image-[^ ,]*\).*/\1/p' | sed -n 1p)
[ -n "$image" ] || die "linux-image-cloud-amd64 of bookworm-backports names no kernel package"
apt_download stable "$out/debs" "$image/bookworm-backports"
unpack "$out" "$out"/debs/*.deb
rm -rf "$out/debs" "${out:?}/usr"

modules=("$out"/lib/modules/*)
version=$(basename "${modules[0]}")
printf '%s\n' "$version" >"$out/version"
[ -s "$out/boot/vmlinuz-$version" ] || die "$image has no boot/vmlinuz-$version"

# modules.dep and its kin are made where a kernel is installed.
if ! depmod=$(PATH=$PATH:/sbin:/usr/sbin command -v depmod); then
	apt_closure "$out/kmod/debs" bookworm '' kmod
	unpack_closure "$out/kmod" "$out/kmod/debs"
	relocate "$out/kmod" bin/kmod
	ln -s kmod "$out/kmod/bin/depmod"
	depmod=$out/kmod/bin/depmod
fi
"$depmod" -b "$out" "$version"
rm -rf "$out/kmod"

for module in virtio_blk virtio_net erofs overlay vmw_vsock_virtio_transport dm-verity; do
	grep -q "/$module\.ko" "$out/lib/modules/$version/modules.dep" "$out/lib/modules/$version/modules.builtin" ||
		die "kernel $version has no $module"
done
