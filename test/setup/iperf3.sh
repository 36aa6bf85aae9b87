#!/bin/bash
# iperf3 of bookworm for `make bench`: a folder with the program, all libraries that
# it is linked with, and the loader, so that it runs on the host and in any
# container. busybox is there for its ping.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' iperf3 busybox-static libc6
deb_version "$out/debs" iperf3 >"$out/version"
unpack "$out/all" "$out"/debs/*.deb

mkdir "$out/root"
cp "$out/all/usr/bin/iperf3" "$out/all/bin/busybox" "$out/root/"
cp --dereference "$out/all/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$out/root/"
libraries=$out/all/usr/lib/x86_64-linux-gnu:$out/all/lib/x86_64-linux-gnu
"$out/root/ld-linux-x86-64.so.2" --library-path "$libraries" --list "$out/root/iperf3" | awk '$2 == "=>" && $1 !~ /^\// { print $1, $3 }' |
	while read -r name path; do
		cp --dereference "$path" "$out/root/$name"
	done
rm -rf "$out/debs" "$out/all"

"$out/root/ld-linux-x86-64.so.2" --library-path "$out/root" "$out/root/iperf3" --version
# Read to its end: a pipe that closes early would kill busybox, and fail this.
"$out/root/busybox" ping --help 2>&1 | grep Usage >/dev/null
