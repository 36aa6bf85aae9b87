#!/bin/bash
# virtiofsd of sid: the virtio-fs device of a VM as a process, with the two
# libraries that it loads.
#
# It asks for a libc of 2.39, for two functions that Rust's library uses where
# there are any (pidfd_spawnp, pidfd_getpid: weak symbols). Only the version is
# not marked as weak, and so the dynamic loader of bookworm refuses a program that
# needs nothing of it. VER_FLG_WEAK, which says so, is bit 1 of vna_flags in
# the Elf64_Vernaux of GLIBC_2.39, which begins with the hash of that name.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}
exe=usr/libexec/virtiofsd

apt_setup sid
apt_download sid "$out/debs" virtiofsd/sid
deb_version "$out/debs" virtiofsd >"$out/version"
apt_setup stable
apt_closure "$out/debs" "$APT_RELEASE" '' libcap-ng0 libseccomp2
unpack_closure "$out" "$out/debs"
rm -rf "$out/debs" "${out:?}/usr/share"
relocate "$out" "$exe"
perl -0777 -pi -e 's/\xb9\x91\x96\x06\x00\x00/\xb9\x91\x96\x06\x02\x00/' "$out/$exe"

# It runs, for which it must find its libraries. (The loader says on standard error
# that it does not find the weak version.)
"$out/$exe" --version
capabilities=$("$out/$exe" --print-capabilities) # not into grep -q, whose early end it takes for an error
[[ $capabilities =~ \"type\":\ *\"fs\" ]] || die "$out/$exe is no virtiofsd"
