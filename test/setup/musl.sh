#!/bin/bash
# A compiler for the guest agent's C: the machine's gcc with musl in the place of its
# libc. Of Debian's musl-dev the headers, the archives and the specs that lead gcc to
# them; besides them the kernel's headers, which musl has none of. It works from wherever
# it lies: the paths in the specs are made relative to gcc's sysroot, which the wrapper
# says.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/apt.sh"
out=${2:?}

apt_setup stable
apt_download stable "$out/debs" "musl-dev/$APT_RELEASE"
deb_version "$out/debs" musl-dev >"$out/version"
unpack "$out/all" "$out"/debs/*.deb
mv "$out/all/usr/include/x86_64-linux-musl" "$out/include"
mv "$out/all/usr/lib/x86_64-linux-musl" "$out/lib"
sed -i 's|/usr/include/x86_64-linux-musl|%R/include|; s|/usr/lib/x86_64-linux-musl|%R/lib|g' "$out/lib/musl-gcc.specs"
rm -rf "$out/debs" "$out/all"

kernel=$TOOLS/buildroot/usr/include
cp -r "$kernel/linux" "$kernel/asm-generic" "$kernel/x86_64-linux-gnu/asm" "$out/include/"

mkdir "$out/bin"
cat >"$out/bin/musl-gcc" <<'WRAPPER'
#!/bin/sh
# gcc with musl for its libc.
root=$(cd "$(dirname "$0")/.." && pwd)
exec gcc --sysroot="$root" -specs="$root/lib/musl-gcc.specs" "$@"
WRAPPER
chmod 0755 "$out/bin/musl-gcc"

# A program that needs nothing of the machine, and says which libc it has seen.
cat >"$out/try.c" <<'PROGRAM'
#include <stdio.h>
#include <linux/limits.h>
#ifdef __GLIBC__
#error these are the headers of the machine
#endif
int main(void) { return printf("linked with musl, paths of %d bytes\n", PATH_MAX) < 0; }
PROGRAM
"$out/bin/musl-gcc" -static -o "$out/try" "$out/try.c"
if ldd "$out/try"; then die "musl-gcc links a dynamic program when it is asked for a static one"; fi
"$out/try"
rm "$out/try" "$out/try.c"
