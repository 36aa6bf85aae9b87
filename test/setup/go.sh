#!/bin/bash
# Go, and the C compiler that cgo and `go test -race` call.
#
# The host's Go is used where it can build the tree. Else the one of
# bookworm-backports is unpacked here; being older than go.mod asks for, it
# fetches the version meant through the module proxy (GOTOOLCHAIN=auto, which
# env.sh sets). The compiler, and the certificates by which the proxy is
# trusted, are the only things installed with the host's own apt-get: gcc is of
# no use without the absolute paths of libc6-dev.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

missing=()
command -v gcc >/dev/null || missing+=(gcc)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
if [ "${#missing[@]}" -gt 0 ]; then
	echo "installing with the host's apt-get: ${missing[*]}" | tee "$out/version"
	apt-get update
	apt-get install --yes --no-install-recommends "${missing[@]}"
fi

if go=$(host_go); then
	version="$("$go" env GOVERSION) (the host's)"
else
	apt_setup stable
	apt_closure "$out/debs" "$APT_RELEASE-backports" '' golang-go
	unpack_closure "$out/root" "$out/debs"
	# GOROOT as Debian splits it: links under lib into the sources under share.
	# Both are put together under one folder, without the links.
	goroot=("$out"/root/usr/lib/go-1.*)
	source=("$out"/root/usr/share/go-1.*)
	cp -a "${source[-1]}/." "$out/"
	find "${goroot[-1]}" -type l -delete
	cp -a "${goroot[-1]}/." "$out/"
	rm -rf "$out/root" "$out/debs"
	version="$(GOTOOLCHAIN=local "$out/bin/go" env GOVERSION), fetches the one of go.mod"
	(cd "$TREE" && GOTOOLCHAIN=auto "$out/bin/go" version)
fi
if [ -s "$out/version" ]; then version+="; with the host's apt-get: ${missing[*]}"; fi
printf '%s\n' "$version" >"$out/version"
