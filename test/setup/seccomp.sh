#!/bin/bash
# libseccomp as the static agent links it: its headers and its archive out of the
# build root, and nothing else of it, as that has a libc of its own. cgo asks
# pkg-config for the library, so there is one that knows this library alone.
. "$(dirname "$0")/lib.sh"
out=${2:?}
root=$TOOLS/buildroot

mkdir "$out/include" "$out/lib"
cp "$root"/usr/include/seccomp.h "$root"/usr/include/seccomp-syscalls.h "$out/include/"
cp "$root"/usr/lib/x86_64-linux-gnu/libseccomp.a "$out/lib/"
cat >"$out/pkg-config" <<'ANSWER'
#!/bin/sh
# Answers cgo, which asks for libseccomp.
here=$(cd "$(dirname "$0")" && pwd)
case " $* " in
*" --cflags "*) echo "-I$here/include" ;;
*" --libs "*) echo "-L$here/lib -lseccomp" ;;
*) echo "this pkg-config knows --cflags and --libs of libseccomp, not: $*" >&2 && exit 1 ;;
esac
ANSWER
chmod 0755 "$out/pkg-config"
dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat='${Version}\n' libseccomp-dev >"$out/version"
