#!/bin/bash
# Regenerates the Go code from the .proto files here. The results are kept in
# the tree, so that neither build nor tests need protoc.
#
# PROTOC names the compiler (protoc of the PATH otherwise), PROTOC_INCLUDE the
# directory with google/protobuf/*.proto where it is not the compiler's own,
# PLUGINS a directory with protoc-gen-go and protoc-gen-go-ttrpc, which are
# built from the versions that go.mod names where it is not set.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
module=github.com/erofsvm/erofsvm
root=$(cd "$here/../.." && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${PLUGINS:-}" ]; then
	PLUGINS=$work/plugins
	(cd "$root" && GOBIN=$PLUGINS go install \
		google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc)
fi
# The files import each other by their path in the module.
mkdir -p "$work/src/$(dirname "$module")"
ln -s "$root" "$work/src/$module"
PATH=$PLUGINS:$PATH "${PROTOC:-protoc}" -I "$work/src" ${PROTOC_INCLUDE:+-I "$PROTOC_INCLUDE"} \
	--go_out="$work/src" --go-ttrpc_out="$work/src" \
	"$work/src/$module"/agentclient/pb/{types,oci,csi,health,agent,guest}.proto
PATH=$PLUGINS:$PATH "${PROTOC:-protoc}" -I "$work/src" ${PROTOC_INCLUDE:+-I "$PROTOC_INCLUDE"} \
	--go_out="$work/src" "$work/src/$module/runtime/sandboxapi/podconfig/podconfig.proto"
