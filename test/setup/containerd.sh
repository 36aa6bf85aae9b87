#!/bin/bash
# containerd and ctr of one release line, from their Go modules. The part's
# name carries the version: containerd-2.4.2.
. "$(dirname "$0")/lib.sh"
part=${1:?} out=${2:?}
version=${part#containerd-}

if [ -x "$TOOLS/go/bin/go" ]; then
	export PATH=$TOOLS/go/bin:$PATH GOTOOLCHAIN=auto
fi
need go "golang-go, or ask for the part go"
module=github.com/containerd/containerd/v2
cd "$out" # outside of any module, so that none's go.mod has a say
for command in containerd ctr; do
	CGO_ENABLED=0 GOBIN=$out GOFLAGS='' go install -trimpath -tags 'no_btrfs no_devmapper no_zfs' \
		-ldflags "-s -w -X $module/version.Version=v$version" "$module/cmd/$command@v$version"
done
"$out/containerd" --version
"$out/containerd" --version | grep " v$version " >/dev/null || die "containerd does not say v$version"
"$out/ctr" --version
printf 'v%s\n' "$version" >"$out/version"
