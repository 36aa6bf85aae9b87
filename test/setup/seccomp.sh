#!/bin/bash
# libseccomp as the static agent links it: Debian's source of it, built with musl in the
# build root, and put beside a pkg-config for cgo, which knows this library alone.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup source
apt_setup stable
work=$out/work
mkdir "$work"
(cd "$work" && apt-get -c "$TOOLS/apt/source/apt.conf" -qq --download-only source "libseccomp/$APT_RELEASE")
version=$(sed -n 's/^Version: //p' "$work"/*.dsc | tail -n 1)
apt_download stable "$work/debs" "gperf/$APT_RELEASE" # makes a table of the names of system calls
unpack "$work/gperf" "$work"/debs/*.deb
cp -r "$TOOLS/musl" "$work/musl"
# shellcheck disable=SC2016 # for the shell in the build root
in_root "$TOOLS/buildroot" "$work" bash -euc '
	cd /build
	PATH=/build/gperf/usr/bin:$PATH
	dpkg-source --no-check --extract *.dsc src
	cd src
	./configure --quiet --prefix=/ --disable-shared --enable-static CC=/build/musl/bin/musl-gcc LDFLAGS=-static \
		CFLAGS="-O2 -ffile-prefix-map=/build/src=."
	make -C include -s install DESTDIR=/build/install
	make -C src -s -j"$(nproc)" install-libLTLIBRARIES DESTDIR=/build/install
'
cp -r "$work/install/include" "$out/include"
mkdir "$out/lib"
cp "$work/install/lib/libseccomp.a" "$out/lib/"
rm -rf "$work"
cat >"$out/pkg-config" <<'ANSWER'
#!/bin/sh
# Answers cgo, which asks for libseccomp.
here=$(cd "$(dirname "$0")" && pwd)
case " $* " in
*" --cflags "*) echo "-I$here/include" ;;
*" --libs "*) echo "-L$here/lib -lseccomp" ;;
*) echo "this pkg-config knows --cflags and --libs of libseccomp, not: $*" >&2 && exit 1 ;;
esac
ANSWER
chmod 0755 "$out/pkg-config"
printf '%s\n' "$version" >"$out/version"
