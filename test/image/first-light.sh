#!/bin/sh
# The command of the first-light image: says where it runs, holds what it sees
# against what the layers of the image should make of each other, and has a
# server answer. Ends with 0, or with 1 if something was not as it should be.
failed=0

check() { # what expected actual
	if [ "$2" = "$3" ]; then
		printf '  ok    %s\n' "$1"
	else
		printf '  FAIL  %s: expected [%s], got [%s]\n' "$1" "$2" "$3"
		failed=1
	fi
}
is() { if test "$@" 2>/dev/null; then echo yes; else echo no; fi; }

printf 'first light: kernel %s, %s, pid %s\n' "$(uname -r)" "$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)" $$

cd /srv || exit 1
check 'a file of the base is deleted' no "$(is -e /etc/debian_version)"
check 'a directory of a package is deleted' no "$(is -e /usr/share/doc/redis-server)"
check 'a file is replaced' 'upper, and longer than it was' "$(cat tangle/replaced)"
check 'a file is kept' 'lower kept' "$(cat tangle/kept)"
check 'an opaque directory has only what is above' new "$(ls -A tangle/hidden-dir)"
check 'a directory that came back is empty of the old' new "$(ls -A tangle/again)"
check 'a file became a directory' upper "$(cat tangle/file-to-dir/new)"
check 'a directory became a file' upper "$(cat tangle/dir-to-file)"
check 'a directory has another mode' 2700:110 "$(stat -c %a:%u tangle/mode-dir)"
check 'hard links are one file' "$(stat -c %i links/hard-1)" "$(stat -c %i links/below/hard-3)"
check 'one name of a hard link is deleted' no "$(is -e links/hard-2)"
check 'a symbolic link leads on' 'three names, one file' "$(cat links/relative)"
check 'an extended attribute' 'läuft' "$(getfattr --only-values -n user.text xattr/user)"
check 'a setuid file' 4755 "$(stat -c %a /usr/local/bin/setuid)"
check 'a device node' 1:3 "$(stat -c %Hr:%Lr special/null)"
check 'a fifo' yes "$(is -p special/fifo)"
check 'an owner beyond 31 bits' 4000000000 "$(stat -c %u special/far-owner)"
check 'a directory of many' 700 "$(ls names/many | wc -l)"
check 'a large file' 125829197 "$(stat -c %s data/noise.bin)"
check 'the end of a sparse file' shore "$(tail -c 5 data/sparse.bin)"
check 'the environment' 'two words, and "quotes"' "$FIRST_LIGHT"

echo written >tangle/kept && echo new >tangle/created
check 'the root can be written to' written "$(cat tangle/kept)"

socket=/tmp/redis.sock
redis-server /etc/redis/redis.conf --unixsocket $socket >/tmp/redis.log 2>&1 &
server=$!
ask() { redis-cli -s $socket "$@" 2>&1; }
tries=0
until [ "$(ask PING)" = PONG ]; do
	tries=$((tries + 1))
	if [ $tries -gt 300 ] || ! kill -0 $server 2>/dev/null; then
		tail -n 5 /tmp/redis.log
		break
	fi
	sleep 0.1
done
check 'redis stores' OK "$(ask SET first light)"
check 'redis gives back' light "$(ask GET first)"
ask SHUTDOWN NOSAVE >/dev/null
wait $server
check 'redis ends' 0 $?

if [ $failed = 0 ]; then echo 'first light: all is as it should be'; else echo 'first light: FAILED'; fi
exit $failed
