#!/bin/bash
# The guest's own kernel: linux-source of bookworm-backports, of the version of the
# distribution's kernel beside it, with the configuration guest/kernel/config, built in
# the build root. The same bytes from the same source, tools and configuration.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}
config=$TREE/guest/kernel/config

apt_setup stable
apt_download stable "$out/source" linux-source-6.12/bookworm-backports
unpack "$out/source" "$out"/source/*.deb
mkdir "$out/tree"
tar --extract --file "$out"/source/usr/src/linux-source-6.12.tar.xz --directory "$out/tree" --strip-components=1
rm -rf "$out/source"
cp "$config" "$out/tree/erofsvm.config"

# What the kernel's own tools are built with, on top of a copy of the build root.
root=$out/root
cp --archive --reflink=auto "$TOOLS/buildroot" "$root"
apt_closure "$out/debs" "$APT_RELEASE" "$root/var/lib/dpkg/status" bc bison flex libelf-dev
in_root "$root" "$out/debs" sh -c 'dpkg --force-unsafe-io --install /build/*.deb'
rm -rf "$out/debs"

# shellcheck disable=SC2016 # for the shell in the build root
in_root "$root" "$out/tree" bash -euo pipefail -c '
	cd /build
	export KBUILD_BUILD_USER=erofsvm KBUILD_BUILD_HOST=erofsvm KBUILD_BUILD_VERSION=1
	export KBUILD_BUILD_TIMESTAMP="$(date --utc --date=@0)"
	make KCONFIG_ALLCONFIG=erofsvm.config allnoconfig
	# An option whose conditions are not met is dropped without a word.
	lost=0
	while IFS== read -r name want; do
		case $name in CONFIG_*) ;; *) continue ;; esac
		have=$(sed -n "s/^$name=//p" .config)
		if [ "${have:-n}" != "$want" ]; then
			echo "error: guest/kernel/config has $name=$want, and it came out as ${have:-n}" >&2
			lost=1
		fi
	done <erofsvm.config
	[ "$lost" = 0 ]
	make -j"$(nproc)" vmlinux
	objcopy --strip-all --remove-section=.comment vmlinux vmlinux.stripped
	make -s kernelrelease >release
'
version=$(cat "$out/tree/release")
modules=$out/lib/modules/$version
mkdir -p "$out/boot" "$modules"
cp "$out/tree/vmlinux.stripped" "$out/boot/vmlinux-$version"
cp "$out/tree/.config" "$out/boot/config-$version"
cp "$out/tree/System.map" "$out/boot/System.map-$version"
# There is no module, and what would be one is listed as built in.
: >"$modules/modules.dep"
cp "$out"/tree/modules.builtin "$out"/tree/modules.builtin.modinfo "$modules/"
rm -rf "$out/tree" "$root"
for module in virtio_blk virtio_net erofs overlay ext4 vmw_vsock_virtio_transport dm-verity virtiofs; do
	grep -q "/$module\.ko" "$modules/modules.builtin" || die "kernel $version has no $module" "add it to guest/kernel/config"
done
printf '%s\n' "$version" >"$out/version"
