#!/bin/bash
# Go and the C compiler that cgo and `go test -race` call.
#
# The host's Go is used where there is one. Else the one of bookworm-backports
# is unpacked here; being older than go.mod asks for, it fetches the version
# meant through the module proxy (GOTOOLCHAIN=auto, set by env.sh).
# The compiler is the one thing that comes from the host's own packages: it is
# of no use without libc6-dev's absolute paths.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=$2

if ! command -v gcc >/dev/null || ! printf '#include <stdlib.h>\n' | gcc -E - >/dev/null 2>&1; then
	echo "gcc or libc6-dev is missing: installing both with the host's apt-get"
	apt-get install --yes --no-install-recommends gcc libc6-dev
fi

if command -v go >/dev/null; then
	printf '%s (the host'\''s)\n' "$(go env GOVERSION)" >"$out/version"
	exit
fi
apt_setup stable
apt_closure "$out/debs" bookworm-backports '' golang-go
unpack_closure "$out/root" "$out/debs"
rm -rf "$out/debs"
# golang-go is links into golang-N.M-go and -src; the tree they make is GOROOT.
goroot=("$out"/root/usr/lib/go-1.*)
cp -a "${goroot[-1]}/." "$out/"
for shared in "$out"/root/usr/share/go-1.*; do
	cp -an "$shared/." "$out/" || true
done
rm -rf "$out/root"
"$out/bin/go" env GOVERSION >"$out/version"
