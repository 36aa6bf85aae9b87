package vsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/hypervisor/internal/tail"
)

const (
	// guestCID can be the same for every VM: each has a daemon of its own.
	guestCID = 3

	// Names in Config.Dir. Nothing below it has a name of the guest's choice.
	deviceSocket = "vhost.sock" // QEMU's end of the device
	hostSocket   = "vsock.sock" // the host's end: CONNECT
	// A guest that dials port N of the host is connected to hostSocket_N.
	readySocket = hostSocket + "_1028"

	// maxSocketPath is sizeof(sockaddr_un.sun_path) without the final NUL.
	maxSocketPath = 107

	// daemonTimeout bounds the start of the daemon, which takes milliseconds.
	daemonTimeout = 10 * time.Second
	// dialTimeout bounds a Dial whose context has no deadline.
	dialTimeout = 10 * time.Second
)

// vhostUserDevice is a vsock device in a vhost-device-vsock daemon.
//
// Its readiness is announced by the guest, which dials PortReady. It is never
// found out by trying: vhost-device-vsock 0.3.0 can deadlock when a CONNECT
// arrives while the driver in the guest is starting.
type vhostUserDevice struct {
	dir    string
	daemon *child.Process
	output *tail.Buffer
	conn   *os.File // to the daemon, for QEMU
	ready  *net.UnixListener

	release sync.Once
	// turn holds the right to wait for the guest; announced says that it has
	// dialled. Two goroutines may wait, one accepts.
	turn      chan struct{}
	announced chan struct{}
}

func openVhostUser(ctx context.Context, cfg Config) (_ Device, err error) {
	if err := checkSocketPaths(cfg.Dir); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(cfg.Daemon); err != nil || !fi.Mode().IsRegular() {
		if err == nil {
			err = errors.New("not a regular file")
		}
		return nil, fmt.Errorf("%w: vsock.backend = %q needs vhost-device-vsock, vsock.device_path is %q: %w (where the host has %s, vsock.backend = %q needs no daemon)",
			ErrUnavailable, VhostUser, cfg.Daemon, err, devicePath, Kernel)
	}
	d := &vhostUserDevice{
		dir: cfg.Dir, output: tail.New(4 << 10),
		turn: make(chan struct{}, 1), announced: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), daemonTimeout)
			defer cancel()
			err = errors.Join(err, d.Close(closing))
		}
	}()

	// Listened on before the guest runs, so that its dial cannot come too early.
	d.ready, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(d.dir, readySocket)})
	if err != nil {
		return nil, fmt.Errorf("listen for the guest's ready signal: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	if err := d.startDaemon(ctx, cfg.Daemon); err != nil {
		return nil, err
	}
	return d, nil
}

// checkSocketPaths refuses a directory too long for the longest socket in it.
func checkSocketPaths(dir string) error {
	for _, name := range []string{deviceSocket, hostSocket, readySocket} {
		if path := filepath.Join(dir, name); len(path) > maxSocketPath {
			return fmt.Errorf("socket path %s has %d bytes, and unix(7) allows %d: choose a shorter state_dir",
				path, len(path), maxSocketPath)
		}
	}
	return nil
}

// startDaemon starts vhost-device-vsock and connects to it on behalf of QEMU. The
// connection is handed to QEMU, which so has nothing to wait for.
func (d *vhostUserDevice) startDaemon(ctx context.Context, binary string) error {
	device := filepath.Join(d.dir, deviceSocket)
	appeared, err := watchFor(d.dir, deviceSocket)
	if err != nil {
		return fmt.Errorf("watch %s: %w", d.dir, err)
	}
	defer appeared.Close()

	cmd := exec.Command(binary,
		"--guest-cid", strconv.Itoa(guestCID),
		"--socket", device,
		"--uds-path", filepath.Join(d.dir, hostSocket))
	cmd.Env = []string{"RUST_BACKTRACE=0"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = d.output, d.output
	if d.daemon, err = child.Start(cmd); err != nil {
		return err
	}
	if err := appeared.Wait(ctx, d.daemon.Done()); err != nil {
		return fmt.Errorf("wait for %s to make %s: %w%s", binary, device, err, d.says())
	}
	conn, err := connect(ctx, device, d.daemon.Done())
	if err != nil {
		return fmt.Errorf("connect to %s: %w%s", device, err, d.says())
	}
	defer conn.Close()
	d.conn, err = conn.File()
	return err
}

// connect connects to a socket that was bound just now. Between bind(2) and
// listen(2), which the daemon calls one after the other, it is refused, and no
// event tells of the second.
func connect(ctx context.Context, path string, gone <-chan struct{}) (*net.UnixConn, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-gone:
			return nil, errors.New("the daemon has ended")
		case <-ctx.Done():
			return nil, err
		}
	}
}

// says is the end of the daemon's output as part of an error.
func (d *vhostUserDevice) says() string {
	if lines := d.Diagnosis(); lines != "" {
		return "\n--- vhost-device-vsock ---\n" + lines
	}
	return ""
}

func (d *vhostUserDevice) Wiring() Wiring {
	return Wiring{Kind: VhostUser, CID: guestCID, File: d.conn, SharedMemory: true}
}

func (d *vhostUserDevice) Release() {
	d.release.Do(func() {
		if d.conn != nil {
			d.conn.Close()
		}
	})
}

func (d *vhostUserDevice) WaitReady(ctx context.Context) error {
	if d.isReady() {
		return nil
	}
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return notAnnounced(context.Cause(ctx))
	}
	if d.isReady() { // seen by whoever had the turn before
		return nil
	}
	if err := d.accept(ctx); err != nil {
		return err
	}
	close(d.announced)
	// A guest that dials again is refused, and cannot fill a queue nobody reads.
	return d.ready.Close()
}

func (d *vhostUserDevice) isReady() bool {
	select {
	case <-d.announced:
		return true
	default:
		return false
	}
}

// accept waits for the guest's one dial; what it would say is not read.
func (d *vhostUserDevice) accept(ctx context.Context) error {
	_ = d.ready.SetDeadline(time.Time{})
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = d.ready.SetDeadline(time.Unix(1, 0)) // the past
	})
	defer func() {
		if !stop() {
			<-fired
		}
	}()
	conn, err := d.ready.Accept()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return notAnnounced(err)
	}
	conn.Close()
	return nil
}

func notAnnounced(err error) error {
	return fmt.Errorf("the agent has not announced itself on port %d of the host: %w", PortReady, err)
}

// Dial asks the daemon for a connection. The protocol is Firecracker's: "CONNECT
// <port>", answered by "OK <port of the host>" or by the end of the stream.
func (d *vhostUserDevice) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, hostSocket))
	if err != nil {
		return nil, fmt.Errorf("connect to vsock port %d: %w", port, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = request(conn, port)
	if !stop() {
		err = context.Cause(ctx) // the connection is closed, or about to be
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to vsock port %d: %w", port, err)
	}
	return conn, nil
}

func request(conn net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	// Read byte by byte: what follows the line is the agent's.
	var line [32]byte
	for n := range line {
		if _, err := io.ReadFull(conn, line[n:n+1]); errors.Is(err, io.EOF) {
			return fmt.Errorf("nobody listens there: %w", unix.ECONNREFUSED)
		} else if err != nil {
			return err
		}
		if line[n] == '\n' {
			if !bytes.HasPrefix(line[:n], []byte("OK ")) {
				return fmt.Errorf("vhost-device-vsock answers %q", line[:n])
			}
			return nil
		}
	}
	return fmt.Errorf("vhost-device-vsock answers %q and no end of line", line)
}

func (d *vhostUserDevice) Daemon() *child.Process { return d.daemon }

func (d *vhostUserDevice) Diagnosis() string { return d.output.Lines(10) }

func (d *vhostUserDevice) Close(ctx context.Context) error {
	d.Release()
	var errs []error
	if d.daemon != nil {
		errs = append(errs, d.daemon.Kill(ctx))
	}
	if d.ready != nil {
		_ = d.ready.Close() // removes its socket; may be closed already
	}
	errs = append(errs, RemoveSockets(d.dir))
	return errors.Join(errs...)
}

// RemoveSockets removes what a device left in dir. It is for dir of a VM that is
// gone and may be called more than once.
func RemoveSockets(dir string) error {
	var errs []error
	for _, name := range []string{deviceSocket, hostSocket, readySocket} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
