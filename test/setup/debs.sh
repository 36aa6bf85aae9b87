#!/bin/bash
# Packages that become layers of the tests' images: each with what it needs and
# the base lacks, downloaded, not installed. The file `layers` has one line per
# package: its name, then the packages it adds to the ones before it.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

# iproute2 stands before nginx-light, which needs it: no layer is empty.
packages=(redis-server iproute2 nginx-light busybox-static procps curl
	ca-certificates vim-tiny perl attr)

apt_setup stable
status=$(mktemp -d "$out/status.XXXX")
tar --extract --file "$TOOLS/base/rootfs.tar" --directory "$status" ./var/lib/dpkg/status

# additions <package>...: the file names of what installing these would fetch.
additions() {
	apt-get -c "$TOOLS/apt/stable/apt.conf" -o Dir::State::status="$status/var/lib/dpkg/status" \
		-o Dir::Cache::archives="$out" -o Debug::NoLocking=true \
		-qq --yes --print-uris --target-release "$APT_RELEASE" install "$@" | awk '{ print $2 }' | sort
}
mkdir "$out/partial"
: >"$status/before"
for i in "${!packages[@]}"; do
	additions "${packages[@]:0:i+1}" >"$status/now"
	printf '%s %s\n' "${packages[i]}" "$(comm -13 "$status/before" "$status/now" | tr '\n' ' ')"
	mv "$status/now" "$status/before"
done | sed 's/ *$//' >"$out/layers"
apt_closure "$out" "$APT_RELEASE" "$status/var/lib/dpkg/status" "${packages[@]}"
rm -rf "$status"

while read -r package debs; do
	for deb in $debs; do
		[ -s "$out/$deb" ] || die "layer $package: $deb was not downloaded"
	done
done <"$out/layers"
cat "$out/layers"
printf '%s packages for %s layers\n' "$(find "$out" -name '*.deb' | wc -l)" "${#packages[@]}" >"$out/version"
