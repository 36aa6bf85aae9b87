#!/bin/bash
# QEMU as Debian builds it, unpacked with its libraries, run from where it
# lies. `qemu` is 10.0 of bookworm-backports; `qemu7` is 7.2 of bookworm, the
# oldest the shim supports.
#
# QEMU's own libraries are found by DT_RPATH (lib.sh, relocate), its modules and
# firmware by a link `qemu-bundle` beside the executable: Debian builds without
# relocation, but util/cutils.c, get_relocated_path, looks below that name first.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
part=${1:?} out=${2:?}

case $part in
qemu) suite=bookworm-backports series=10.0 ;;
qemu7) suite=bookworm series=7.2 ;;
*) die "qemu.sh does not know the part $part" ;;
esac

apt_setup stable
apt_closure "$out/debs" "$suite" '' qemu-system-x86 qemu-utils
deb_version "$out/debs" qemu-system-x86 >"$out/version"
unpack_closure "$out" "$out/debs"
rm -rf "$out/debs" "${out:?}/usr/share/doc" "${out:?}/usr/share/man" "${out:?}/usr/share/locale" "${out:?}/var"

executables=(usr/bin/qemu-system-x86_64 usr/bin/qemu-img usr/bin/qemu-io
	usr/bin/qemu-nbd usr/bin/qemu-storage-daemon)
relocate "$out" "${executables[@]}"
ln -s ../.. "$out/usr/bin/qemu-bundle"
check_linked "$out" "${executables[@]}"

# It runs, is the version meant, can emulate, and answers on QMP.
qemu=$out/usr/bin/qemu-system-x86_64
"$qemu" -version
"$qemu" -version | grep "version $series\." >/dev/null || die "$qemu is not QEMU $series"
"$qemu" -accel help | grep -x tcg >/dev/null || die "$qemu has no tcg accelerator" "see that accel-tcg-x86_64.so is found and loads"
printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-status"}' '{"execute":"quit"}' |
	timeout 60 "$qemu" -nodefaults -no-user-config -machine q35 -accel tcg -S -display none -qmp stdio |
	tee "$out/qmp.log"
grep -q '"status": "prelaunch"' "$out/qmp.log" || die "$qemu does not answer on QMP"
rm "$out/qmp.log"
# A module with a library of its own loads (usb-host is in none but a module).
"$qemu" -nodefaults -machine q35 -device usb-host,help >/dev/null
for exe in "${executables[@]:1}"; do
	"$out/$exe" --version | sed -n 1p
done
