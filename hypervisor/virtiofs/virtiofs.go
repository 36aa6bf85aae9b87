// Package virtiofs shows files and directories of the host to one guest, with a
// virtiofsd daemon that sees nothing else.
//
// A Daemon belongs to one device of one VM. Its mounts are in a mount namespace
// of its own, so that the host has none of them and none can be left behind;
// its processes are in a PID namespace of their own, so that they end together.
// Start may be called from any goroutine, as may the methods of a Daemon. The
// package never starts QEMU, and never looks at what the directories hold.
//
// The daemon is the virtiofsd that is written in Rust
// (https://gitlab.com/virtio-fs/virtiofsd), of version 1.10 or newer. That of
// QEMU 7.2 and older has other options, and is no longer maintained.
package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/hypervisor/internal/tail"
)

const (
	// fdListen is where the daemon inherits its socket: the first of
	// exec.Cmd.ExtraFiles.
	fdListen = 3

	// socketName is the daemon's in Config.Dir, as long as nobody has connected.
	socketName = "fs.sock"

	// maxEntries bounds what one device shows.
	maxEntries = 1024
)

// entryName is a name of an Entry: no dot, no slash, no option of mount(8).
var entryName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)
})

const maxEntryName = 64 // bytes

// Entry is a file or a directory of the host under the name that the guest finds
// it by, at the root of what it mounts.
type Entry struct {
	Name string
	// Tree is a mount that is attached nowhere: of open_tree(2) with
	// OPEN_TREE_CLONE. It stays the caller's, who may close it once Start has
	// returned; a Start that failed may have used it up.
	Tree *os.File
	// ReadOnly lets nobody write through the daemon, whatever the guest does: to
	// the tree and to what is mounted in it.
	ReadOnly bool
	// Receive shows the guest also what the host mounts below the tree later.
	Receive bool
}

// Config is what Start needs.
type Config struct {
	Binary string // virtiofsd, an absolute path
	// Dir is a directory private to the VM, which exists. The daemon sees its
	// mounts there; the host sees a socket, for a moment: one Start at a time.
	Dir     string
	Entries []Entry
	// Hide are types of filesystems that the guest is not shown where they are
	// mounted below an entry, as mountinfo names them (proc_pid_mountinfo(5)).
	Hide []string
}

// Daemon is one running or ended virtiofsd.
type Daemon struct {
	process *child.Process
	output  *tail.Buffer
	conn    *os.File
	release sync.Once
}

// Start starts a daemon and connects to it on behalf of QEMU. It does not wait
// until the daemon is ready to serve: QEMU's first message does. Nothing is left
// behind by an error.
func Start(cfg Config) (_ *Daemon, err error) {
	if err := check(cfg); err != nil {
		return nil, err
	}
	listener, conn, err := connected(filepath.Join(cfg.Dir, socketName))
	if err != nil {
		return nil, fmt.Errorf("socket for virtiofsd: %w", err)
	}
	defer listener.Close() // else nobody would hear that the daemon has ended
	d := &Daemon{conn: conn, output: tail.New(4 << 10)}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()

	cmd := exec.Command(cfg.Binary, argv(cfg.Dir)...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = d.output, d.output
	cmd.ExtraFiles = []*os.File{listener}
	// It forks, to be alone in its sandbox. As the first process of a PID
	// namespace it takes with it whatever it has started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	d.process, err = child.StartFrom(func() error { return mountAll(cfg) }, cmd)
	return d, err
}

// argv is the daemon's command line without the name of the program. It depends
// on nothing but its argument.
func argv(dir string) []string {
	return []string{
		fmt.Sprintf("--fd=%d", fdListen),
		"--shared-dir=" + dir,
		// The default, said because everything rests on it: the daemon makes dir
		// its root and has no network.
		"--sandbox=namespace", "--seccomp=kill",
		// Nobody makes a device of the host out of a directory.
		"--modcaps=-mknod",
		// A descriptor for each file that the guest knows, and not a handle, which is
		// for who may open all files of a filesystem (CAP_DAC_READ_SEARCH). It raises
		// its limit of them by itself, to a million or to what it may have.
		"--inode-file-handles=never",
		// What a bind mount has.
		"--xattr", "--posix-acl",
		"--log-level=warn",
	}
}

func check(cfg Config) error {
	if len(cfg.Entries) == 0 || len(cfg.Entries) > maxEntries {
		return fmt.Errorf("%d files and directories, and one device has 1 to %d", len(cfg.Entries), maxEntries)
	}
	seen := map[string]bool{}
	for _, e := range cfg.Entries {
		if len(e.Name) > maxEntryName || !entryName().MatchString(e.Name) || seen[e.Name] {
			return fmt.Errorf("the name %q is another's, or is not letters, digits and '-'", e.Name)
		}
		seen[e.Name] = true
	}
	return nil
}

// connected returns a listening socket and a connection to it that nobody has
// accepted yet. The daemon accepts it, as if somebody had found it by path; there
// is nothing to wait for and no path that anybody else could find.
func connected(path string) (listener, conn *os.File, err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close() // removes the path
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	if listener, err = l.File(); err != nil {
		return nil, nil, err
	}
	if conn, err = c.File(); err != nil {
		listener.Close()
		return nil, nil, err
	}
	// The daemon waits in accept(2), and not for readiness; the flag is the
	// socket's and not this descriptor's.
	if err = unix.SetNonblock(int(listener.Fd()), false); err != nil {
		listener.Close()
		conn.Close()
		return nil, nil, err
	}
	return listener, conn, nil
}

// RemoveSocket removes what a Start that was cut short by the end of this process
// can have left in dir. It may be called more than once.
func RemoveSocket(dir string) error {
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Conn is the connection for QEMU; legal until Release, and the Daemon's to close.
func (d *Daemon) Conn() *os.File { return d.conn }

// Release closes this process's copy of Conn, once QEMU has it: the daemon ends
// when the last one is closed.
func (d *Daemon) Release() { d.release.Do(func() { d.conn.Close() }) }

// Identity names the daemon for a later run of another program.
func (d *Daemon) Identity() child.Identity { return d.process.Identity() }

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} { return d.process.Done() }

// Err says how the daemon ended, with what it printed last; nil before Done.
func (d *Daemon) Err() error {
	select {
	case <-d.Done():
	default:
		return nil
	}
	err := d.process.Err()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("virtiofsd ended: %w%s", err, d.Says())
}

// Says is the end of the daemon's output as part of an error.
func (d *Daemon) Says() string {
	if lines := d.output.Lines(10); lines != "" {
		return "\n--- virtiofsd ---\n" + lines
	}
	return ""
}

// Close ends the daemon and waits until its processes and mounts are gone. What
// the guest has written is the host's by then: the daemon keeps nothing back. It
// may be called more than once.
func (d *Daemon) Close(ctx context.Context) error {
	d.Release()
	return d.process.Kill(ctx)
}
