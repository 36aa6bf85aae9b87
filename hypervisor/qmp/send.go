package qmp

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// send writes line, with a duplicate of file at its first byte unless file is
// nil, and returns how many bytes were taken.
func send(conn net.Conn, line []byte, file *os.File) (int, error) {
	if file == nil {
		return conn.Write(line)
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%w: it is a %T", ErrNoFiles, conn)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoFiles, err)
	}
	var n int
	var sendErr error
	// Within Control the descriptor cannot be closed and given to another file.
	if err := raw.Control(func(fd uintptr) {
		n, _, sendErr = socket.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	}); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoFiles, err)
	}
	if sendErr != nil || n == len(line) {
		return n, sendErr
	}
	more, err := conn.Write(line[n:]) // sendmsg takes less where the buffer is full
	return n + more, err
}
