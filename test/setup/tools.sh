#!/bin/bash
# Brings what the build and the tests need into <tree>/.build/tools.
#
#   test/setup/tools.sh              everything of the default list
#   test/setup/tools.sh qemu kernel  these parts (and what they need)
#   test/setup/tools.sh --list       the parts
#
# EROFSVM_BUILD=/some/dir puts it there instead of <tree>/.build.
#
# A part is made in a temporary folder and renamed into place with a stamp
# that carries the hash of the scripts that made it, so an interrupted run
# leaves nothing half-done, a part whose script changed is made again, and a
# run with everything present touches neither network nor disk.
. "$(dirname "$0")/lib.sh"
LOGS=$BUILD/logs

# part: its folder under tools, its scripts (the first one makes it), the parts
# it needs. In the order in which they are made.
declare -A FOLDER SCRIPTS NEEDS
ORDER=()
MAKING= # the process of the part that is being made
part() {
	ORDER+=("$1")
	FOLDER[$1]=$2
	SCRIPTS[$1]=$3
	NEEDS[$1]=${4-}
}
part go go "go.sh"
part patchelf patchelf "patchelf.sh"
part qemu qemu "qemu.sh" "patchelf"
part kernel kernel "kernel.sh" "patchelf"
part vhost-device-vsock vhost-device-vsock "vhost-device-vsock.sh"
part virtiofsd virtiofsd "virtiofsd.sh" "patchelf"
part base base "base.sh" "patchelf"
part buildroot buildroot "buildroot.sh base.sh" "base"
part erofs-utils erofs-utils "erofs-utils.sh buildroot.sh base.sh" "buildroot"
part musl musl "musl.sh buildroot.sh base.sh" "buildroot"
part seccomp seccomp "seccomp.sh musl.sh buildroot.sh base.sh" "musl buildroot"
part guest-kernel guest-kernel "guest-kernel.sh buildroot.sh base.sh ../../guest/kernel/config" "buildroot"
for version in 2.4.2 2.3.7 2.2.9; do
	part "containerd-$version" "containerd/$version" "containerd.sh" "go"
done
part debs base/debs "debs.sh base.sh" "base"
part qemu7 qemu7 "qemu.sh" "patchelf"
part cni cni "cni.sh" "patchelf"
part systemd systemd "systemd.sh"
part protoc protoc "protoc.sh" "patchelf"
part fio fio "fio.sh" "patchelf"
part iperf3 iperf3 "iperf3.sh"
part runc runc "runc.sh" "go patchelf"
part kubernetes kubernetes "kubernetes.sh kubernetes/go.mod kubernetes/go.sum" "go patchelf"
DEFAULT=(go patchelf qemu kernel vhost-device-vsock virtiofsd base buildroot erofs-utils musl seccomp
	containerd-2.4.2 containerd-2.3.7 containerd-2.2.9 debs qemu7 cni systemd)

# stamp_of <part>: the first line of the stamp that a current part carries.
stamp_of() {
	local script paths=()
	for script in ${SCRIPTS[$1]}; do paths+=("$SETUP_DIR/$script"); done
	# A host that loses its Go, or gets a newer go.mod, needs the part anew.
	if [ "$1" = go ]; then
		printf 'go %s ' "$(host_go 2>/dev/null || echo none)"
	fi
	printf '%s %s' "$1" "$(cat "${paths[@]}" | sha256sum | cut -c1-64)"
}

is_current() {
	local have
	read -r have 2>/dev/null <"$TOOLS/${FOLDER[$1]}/.stamp" && [ "$have" = "$(stamp_of "$1")" ]
}

# wanted <part>...: the parts with what they need, in the order of making, each
# once. A part that is current does not call for its needs.
wanted() {
	local -A want=()
	local name
	collect() {
		local dep
		[ -n "${FOLDER[$1]-}" ] || die "there is no part $1" "one of: ${ORDER[*]}"
		is_current "$1" && return
		want[$1]=1
		for dep in ${NEEDS[$1]}; do collect "$dep"; done
	}
	for name in "$@"; do collect "$name"; done
	for name in "${ORDER[@]}"; do
		if [ -n "${want[$name]-}" ]; then printf '%s\n' "$name"; fi
	done
}

# make_part <part>: run its script into a temporary folder, stamp it, rename.
make_part() {
	local name=$1 scripts tmp stamp dest=$TOOLS/${FOLDER[$1]} log=$LOGS/setup-$1.log started=$SECONDS
	stamp=$(stamp_of "$name") # before: a script edited meanwhile is not what made it
	read -ra scripts <<<"${SCRIPTS[$name]}"
	tmp=$TOOLS/.tmp/$name
	discard "$tmp"
	mkdir -p "$tmp" "$(dirname "$dest")"
	printf '  %-20s ' "$name"
	# A session of its own, so that `interrupted` ends all of it at once.
	setsid bash "$SETUP_DIR/${scripts[0]}" "$name" "$tmp" >"$log" 2>&1 </dev/null &
	MAKING=$!
	if ! wait "$MAKING"; then
		MAKING=
		printf 'FAILED after %ss; the end of %s:\n\n' "$((SECONDS - started))" "$log" >&2
		tail -n 20 "$log" >&2
		printf '\nAsk for it again with: %s %s\n' "$0" "$name" >&2
		return 1
	fi
	MAKING=
	printf '%s\nversion %s\n' "$stamp" "$(cat "$tmp/version")" >"$tmp/.stamp"
	if [ -e "$dest" ]; then
		discard "$TOOLS/.tmp/$name.old"
		mv "$dest" "$TOOLS/.tmp/$name.old"
	fi
	mv "$tmp" "$dest"
	discard "$TOOLS/.tmp/$name.old"
	printf '%-36s %4ss\n' "$(cat "$dest/version")" "$((SECONDS - started))"
}

# interrupted: end the part that is being made, with all its processes, then
# leave through the EXIT trap, which removes what it had made.
interrupted() {
	if [ -n "$MAKING" ]; then
		kill -TERM -- "-$MAKING" 2>/dev/null || true
		wait "$MAKING" 2>/dev/null || true
		# unshare(1) ignores SIGTERM; SIGKILL takes its namespaces with it.
		while kill -KILL -- "-$MAKING" 2>/dev/null; do sleep 0.1; done
	fi
	printf '\ninterrupted; nothing half-done is left\n' >&2
	exit 130
}

# discard: build roots are full of other users' files, but never of mounts:
# whatever mounts does it in a mount namespace of its own (base.sh).
discard() {
	rm -rf --one-file-system "$1"
}

write_env() {
	local dir path=''
	for dir in go/bin qemu/usr/bin vhost-device-vsock/usr/bin erofs-utils/bin containerd/2.4.2 protoc/bin; do
		path+="\$tools/$dir:"
	done
	cat >"$TOOLS/.tmp/env.sh" <<-ENV
		# Made by test/setup/tools.sh; source it: . .build/tools/env.sh
		tools=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
		export PATH="$path\$PATH"
		[ ! -x "\$tools/go/bin/go" ] || export GOTOOLCHAIN=auto
		unset tools
	ENV
	mv "$TOOLS/.tmp/env.sh" "$TOOLS/env.sh"
}

main() {
	local todo name
	case ${1-} in
	--list)
		printf '%s\n' "${ORDER[@]}"
		return
		;;
	-*) die "unknown option $1" "test/setup/tools.sh [--list] [part...]" ;;
	esac
	[ $# -gt 0 ] || set -- "${DEFAULT[@]}"
	todo=$(wanted "$@")
	[ -n "$todo" ] || return 0

	[ "$(id -u)" = 0 ] || die "the build root is made with chroot(2)" "run as root"
	need flock util-linux
	mkdir -p "$TOOLS" "$LOGS"
	exec 9>"$TOOLS/.lock"
	flock --nonblock 9 || { echo "waiting for another run of tools.sh" && flock 9; }
	trap 'discard "$TOOLS/.tmp"' EXIT
	trap interrupted INT TERM HUP
	mkdir -p "$TOOLS/.tmp" # not before: the run we waited for removes it
	write_env
	printf 'Setting up %s\n' "$TOOLS"
	# Asked anew after each part: the run we waited for may have made it, and a
	# new base takes away base/debs.
	while read -r name < <(wanted "$@"); do
		make_part "$name"
	done
}

main "$@"
