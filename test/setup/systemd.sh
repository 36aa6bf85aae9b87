#!/bin/bash
# systemd of bookworm with all that it loads, as a root directory in which it can be
# the first process of a pid namespace: for tests of what is asked of systemd. No
# package's script has run in it, and there is no shell that could.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' systemd
deb_version "$out/debs" systemd >"$out/version"
unpack "$out/root" "$out"/debs/*.deb
rm -rf "$out/debs" "$out"/root/usr/share/{doc,man,locale,info,perl*,zoneinfo,bash-completion} "$out"/root/usr/lib/x86_64-linux-gnu/{perl*,gconv}
mkdir -p "$out"/root/{dev,proc,run,sys,tmp,test}

# It runs.
chroot "$out/root" /lib/systemd/systemd --version
