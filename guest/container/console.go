package container

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// consoleSocket is where the process that libcontainer prepares sends the
// master side of the terminal that it opened inside the container.
type consoleSocket struct {
	parent int
	child  *os.File
}

func newConsoleSocket() (*consoleSocket, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	return &consoleSocket{parent: fds[0], child: os.NewFile(uintptr(fds[1]), "console")}, nil
}

// receive returns the terminal. libcontainer has returned by now, so it was
// sent before or never will be: the child's end is closed first, and a missing
// terminal is an end of file and not a wait.
func (c *consoleSocket) receive() (*os.File, error) {
	_ = c.child.Close()
	name := make([]byte, 4096)
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(c.parent, name, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive the terminal: %d control messages, want 1 (%w)", len(messages), unix.EPROTO)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: %d descriptors, want 1 (%w)", len(fds), unix.EPROTO)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl(O_NONBLOCK)", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (c *consoleSocket) Close() {
	unix.Close(c.parent)
	_ = c.child.Close()
}
