#!/bin/bash
# The CNI plugins of bookworm, with the iptables that portmap runs: what gives
# the tests' pods their networks. A tree of usr/lib/cni and usr/sbin/iptables.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' containernetworking-plugins iptables
deb_version "$out/debs" containernetworking-plugins >"$out/version"
unpack_closure "$out" "$out/debs"
rm -rf "$out/debs" "${out:?}/usr/share"
relocate "$out" usr/sbin/xtables-nft-multi usr/sbin/xtables-legacy-multi
check_linked "$out" usr/sbin/xtables-nft-multi
for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
	ln -sf xtables-nft-multi "$out/usr/sbin/$name"
done

XTABLES_LIBDIR=$out/usr/lib/x86_64-linux-gnu/xtables "$out/usr/sbin/iptables" --version
for plugin in bridge host-local loopback portmap ptp; do
	[ -x "$out/usr/lib/cni/$plugin" ] || die "there is no CNI plugin $plugin in the package"
done
