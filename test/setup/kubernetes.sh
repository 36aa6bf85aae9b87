#!/bin/bash
# A Kubernetes for `make test-k8s`: its programs and metrics-server, built from the
# Go modules that kubernetes/go.mod names, etcd of bookworm, and the nft with which
# kube-proxy makes its rules. A folder of links to all of them, for PATH.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' etcd-server nftables
etcd=$(deb_version "$out/debs" etcd-server)
for name in etcd-server nftables libnftables1 libnftnl11 libmnl0 libjansson4 libgmp10 libxtables12 libedit2 libbsd0 libmd0 libtinfo6; do
	unpack "$out/all" "$out/debs/$name"_*.deb
done
relocate "$out/all" usr/sbin/nft
check_linked "$out/all" usr/sbin/nft usr/bin/etcd
mkdir "$out/bin"
ln -s ../all/usr/sbin/nft ../all/usr/bin/etcd "$out/bin/"
rm -rf "$out/debs" "${out:?}/all/usr/share" "${out:?}/all/var" "${out:?}/all/etc"
"$out/bin/nft" --version
"$out/bin/etcd" --version

if [ -x "$TOOLS/go/bin/go" ]; then
	export PATH=$TOOLS/go/bin:$PATH GOTOOLCHAIN=auto
fi
need go "golang-go, or ask for the part go"
cd "$SETUP_DIR/kubernetes"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly
version=$(go list -m -f '{{ .Version }}' k8s.io/kubernetes)
# The programs ask it of themselves, to see which releases they may work with.
IFS=. read -r major minor _ <<<"${version#v}"
say=k8s.io/component-base/version
# One at a time: each is said in the log, and they have most of their packages in common.
while read -r program; do
	echo "$program"
	go build -trimpath -o "$out/bin/" \
		-ldflags "-s -w -X $say.gitVersion=$version -X $say.gitMajor=$major -X $say.gitMinor=$minor" "$program"
done < <(go list -f '{{ .ImportPath }}' tool)
"$out/bin/kubelet" --version
"$out/bin/kubelet" --version | grep -x "Kubernetes $version" >/dev/null || die "the kubelet does not say $version"
printf '%s with etcd %s\n' "$version" "$etcd" >"$out/version"
