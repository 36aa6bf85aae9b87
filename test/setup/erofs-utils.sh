#!/bin/bash
# erofs-utils built from sid's source package in the build root, with its
# compression libraries linked in: sid's own binaries want a newer libc, and
# bookworm's version is too old (before 1.9 it merges layers wrongly).
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}
oldest=1.9.3

apt_setup sid
work=$out/work
mkdir "$work"
(cd "$work" && apt-get -c "$TOOLS/apt/sid/apt.conf" -qq --download-only source erofs-utils/sid)
# shellcheck disable=SC2016 # for the shell in the build root
in_root "$TOOLS/buildroot" "$work" bash -euc '
	cd /build
	dpkg-source --no-check --extract *.dsc src
	cd src
	autoreconf --force --install
	./configure --prefix=/ --disable-fuse --without-selinux --enable-multithreading \
		--enable-lz4 --enable-lzma --with-zlib --with-libdeflate --with-libzstd --with-uuid
	make -j"$(nproc)"
	make install-strip DESTDIR=/build/install
'
mkdir "$out/bin"
cp "$work"/install/bin/{mkfs,dump,fsck}.erofs "$out/bin/"
rm -rf "$work"
for exe in "$out"/bin/*; do
	ldd "$exe"
	"$exe" --version
done
"$out/bin/mkfs.erofs" --version | sed -n 's/^mkfs.erofs.* \([0-9][0-9.]*\).*/\1/p' | sed -n 1p >"$out/version"
version=$(cat "$out/version")
printf '%s\n' "$oldest" "$version" | sort -CV || die "erofs-utils $version is older than $oldest"

# Two tiny layers, the upper one deleting and adding a file, merge as one tree.
try=$(mktemp -d "$out/try.XXXX")
mkdir "$try/lower" "$try/upper"
touch "$try/lower/gone" "$try/lower/stays" "$try/upper/.wh.gone" "$try/upper/new"
for layer in lower upper; do
	tar -C "$try/$layer" -cf "$try/$layer.tar" .
	"$out/bin/mkfs.erofs" --quiet --tar=f --aufs "$try/$layer.erofs" "$try/$layer.tar"
done
"$out/bin/mkfs.erofs" --quiet --aufs --ovlfs-strip=1 "$try/merged.erofs" "$try/lower.erofs" "$try/upper.erofs"
"$out/bin/fsck.erofs" --device="$try/lower.erofs" --device="$try/upper.erofs" "$try/merged.erofs"
"$out/bin/dump.erofs" --ls --path=/ "$try/merged.erofs" >"$try/list"
cat "$try/list"
for name in stays new; do
	grep -qw "$name" "$try/list" || die "mkfs.erofs $version loses files when it merges"
done
if grep -qw gone "$try/list"; then die "mkfs.erofs $version keeps a deleted file when it merges"; fi
rm -rf "$try"
