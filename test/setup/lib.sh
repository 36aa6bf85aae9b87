# shellcheck shell=bash
# Shared by every script of test/setup: where things lie, and how Debian
# packages become a folder that runs from where it stands.
#
# Sourced, never run. A part script is called by tools.sh as
#   bash <part>.sh <part> <output folder>
# with standard output and error going to the part's log. It fills the output
# folder (a temporary one, renamed into place by tools.sh when the script
# succeeds) and leaves in it a file `version`.

set -euo pipefail
shopt -s nullglob

SETUP_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TREE=$(cd "$SETUP_DIR/../.." && pwd)
BUILD=$(realpath --canonicalize-missing "${EROFSVM_BUILD:-$TREE/.build}")
TOOLS=$BUILD/tools

export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# die: the reason and the fix, on two lines; tools.sh shows the log's tail.
die() {
	printf 'error: %s\n' "$1" >&2
	if [ $# -gt 1 ]; then printf 'fix:   %s\n' "$2" >&2; fi
	exit 1
}

need() {
	command -v "$1" >/dev/null || die "$1 is not installed" "apt-get install $2"
}

# host_go: the host's own Go, if it can build the tree: as new as go.mod asks
# for, or able to fetch that (GOTOOLCHAIN). One that we unpacked is not the host's.
host_go() {
	local go want have
	go=$(PATH=${PATH//"$TOOLS/go/bin:"/} command -v go) || return 1
	want=$(awk '$1 == "go" { print $2 }' "$TREE/go.mod")
	have=$(cd "$TREE" && "$go" env GOVERSION) || return 1
	printf '%s\n' "$want" "${have#go}" | sort -CV || return 1
	printf '%s\n' "$go"
}

# unpack <root> <deb>...: the files of packages, without their maintainer
# scripts: nothing of them runs, nothing is registered with dpkg.
unpack() {
	local root=$1 deb
	shift
	mkdir -p "$root"
	for deb in "$@"; do
		dpkg-deb --extract "$deb" "$root"
	done
}

# deb_version <folder of debs> <package>: the version that was downloaded.
deb_version() {
	local deb
	for deb in "$1/$2"_*.deb; do
		dpkg-deb --field "$deb" Version
		return
	done
	die "no $2 among the packages of $1"
}

# host_provides <package>: packages whose files every Debian host has and which
# must never be shadowed. A second libc beside the host's dynamic loader
# crashes at start; the rest are the closure's tools, not libraries we load.
host_provides() {
	case $1 in
	libc6 | libc-bin | libgcc-s1 | gcc-*-base | libcrypt1) return 0 ;;
	debconf | perl-base | dpkg | tar | adduser | passwd | login | cdebconf) return 0 ;;
	*) return 1 ;;
	esac
}

# unpack_closure <root> <folder of debs>: unpack all but what the host provides.
unpack_closure() {
	local root=$1 debs=$2 deb name
	for deb in "$debs"/*.deb; do
		name=$(basename "$deb")
		host_provides "${name%%_*}" || unpack "$root" "$deb"
	done
}

is_elf() {
	[ -f "$1" ] && [ ! -L "$1" ] && [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]
}

# relocate <root> <executable under root>...: make executables find the
# libraries unpacked beside them, wherever the tree is moved to, without a
# wrapper script (a wrapper would change argv[0] and the process the shim
# watches). DT_RPATH, not DT_RUNPATH: only the former also covers the libraries
# that libraries and dlopened modules need. A DT_RUNPATH in any of those would
# switch it off for them (ld.so(8)), so it is removed there.
relocate() {
	local root=$1 exe up lib
	local patchelf=$TOOLS/patchelf/usr/bin/patchelf
	shift
	while IFS= read -r lib; do
		if is_elf "$lib" && [ -n "$("$patchelf" --print-rpath "$lib")" ]; then
			"$patchelf" --remove-rpath "$lib"
		fi
	done < <(find "$root" -type f -name '*.so*')
	for exe in "$@"; do
		up=$(realpath --relative-to="$(dirname "$root/$exe")" "$root")
		"$patchelf" --force-rpath --set-rpath \
			"\$ORIGIN/$up/usr/lib/x86_64-linux-gnu:\$ORIGIN/$up/lib/x86_64-linux-gnu" "$root/$exe"
	done
}

# check_linked <root> <executable under root>...: each finds all its libraries.
check_linked() {
	local root=$1 exe missing
	shift
	for exe in "$@"; do
		missing=$(ldd "$root/$exe" | grep 'not found' || true)
		[ -z "$missing" ] || die "$exe misses libraries: $missing" "add the package that has them to its part's script"
	done
}

# in_root <root> <folder> <command>...: run a command inside a root with the
# folder mounted as its /build and a /proc, in a mount and PID namespace of its
# own: when the command ends, or is interrupted, neither mounts nor processes
# of it are left.
in_root() {
	local root=$1 folder=$2
	shift 2
	mkdir -p "$root/build"
	# shellcheck disable=SC2016 # for the shell in the namespaces
	unshare --mount --pid --fork --kill-child -- bash -euc '
		root=$1 folder=$2
		shift 2
		mount --bind "$folder" "$root/build"
		mount -t proc proc "$root/proc"
		exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
			HOME=/build LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
	' in_root "$root" "$folder" "$@"
}
