#!/bin/bash
# fio of bookworm with the libraries that it is linked with, for `make bench`: a
# tree of usr/bin/fio and usr/lib/fio that goes on top of `base`, which has the
# libc. Of the 246 MB that the packages unpack to, this is what is loaded.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' fio
deb_version "$out/debs" fio >"$out/version"
unpack_closure "$out/all" "$out/debs"
# Ceph's libraries name a folder of their own.
for library in "$out"/all/usr/lib/x86_64-linux-gnu/ceph/*.so*; do
	ln -s "ceph/$(basename "$library")" "$out/all/usr/lib/x86_64-linux-gnu/"
done
relocate "$out/all" usr/bin/fio
check_linked "$out/all" usr/bin/fio

mkdir -p "$out/root/usr/bin" "$out/root/usr/lib/fio"
cp "$out/all/usr/bin/fio" "$out/root/usr/bin/"
while read -r name path; do
	cp --dereference "$path" "$out/root/usr/lib/fio/$name"
done < <(ldd "$out/all/usr/bin/fio" | awk -v root="$out/all/" 'index($3, root) == 1 { print $1, $3 }')
rm -rf "$out/debs" "$out/all"
# shellcheck disable=SC2016 # for the dynamic loader
"$TOOLS/patchelf/usr/bin/patchelf" --force-rpath --set-rpath '$ORIGIN/../lib/fio' "$out/root/usr/bin/fio"
check_linked "$out/root" usr/bin/fio

# It runs, and has the engine that the benchmark uses.
"$out/root/usr/bin/fio" --version
"$out/root/usr/bin/fio" --enghelp | grep -w libaio >/dev/null || die "fio has no engine libaio"
