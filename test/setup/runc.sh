#!/bin/bash
# runc of bookworm with the libraries that it is linked with, and containerd's shim
# for it, from the module of the newest release: what `make bench` has beside our
# own. A folder of both, for PATH.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' runc
deb_version "$out/debs" runc >"$out/version"
unpack_closure "$out/all" "$out/debs"
relocate "$out/all" usr/sbin/runc
check_linked "$out/all" usr/sbin/runc
mkdir "$out/bin"
ln -s ../all/usr/sbin/runc "$out/bin/runc"
rm -rf "$out/debs" "${out:?}/all/usr/share" "${out:?}/all/var"
"$out/bin/runc" --version

if [ -x "$TOOLS/go/bin/go" ]; then
	export PATH=$TOOLS/go/bin:$PATH GOTOOLCHAIN=auto
fi
need go "golang-go, or ask for the part go"
version=2.4.2
module=github.com/containerd/containerd/v2
cd "$out" # outside of any module, so that none's go.mod has a say
CGO_ENABLED=0 GOBIN=$out/bin GOFLAGS='' go install -trimpath \
	-ldflags "-s -w -X $module/version.Version=v$version" "$module/cmd/containerd-shim-runc-v2@v$version"
"$out/bin/containerd-shim-runc-v2" -v
"$out/bin/containerd-shim-runc-v2" -v | grep " v$version" >/dev/null || die "the shim of runc does not say v$version"
