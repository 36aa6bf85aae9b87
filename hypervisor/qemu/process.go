package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/child"
	"github.com/erofsvm/erofsvm/hypervisor/internal/tail"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

const (
	// What is kept of the console and of stderr, and shown in an error. The
	// trace of a panic, which its reason stands above, has some fifty lines.
	consoleBytes, consoleLines = 16 << 10, 80
	stderrBytes, stderrLines   = 4 << 10, 20

	// dyingTime is how long a QEMU that has closed its monitor may take to
	// exit by itself, so that its own exit status is seen and not that of a
	// kill.
	dyingTime = time.Second
)

// process is one running QEMU with the shim's ends of its monitor and console.
type process struct {
	child   *child.Process
	monitor *qmp.Monitor
	console *tail.Buffer
	stderr  *tail.Buffer
	drained chan struct{} // closed when the console has been read to its end
}

// launch starts QEMU in the caller's network namespace. It inherits the monitor as
// fdQMP, the console as fdConsole and then extra, which stay the caller's to close.
func launch(binary string, args []string, extra ...*os.File) (*process, error) {
	return launchIn(nil, io.Discard, binary, args, extra...)
}

// launchIn is launch for another network namespace, unless that is nil; listener is
// written all that comes by the console.
func launchIn(netns *os.File, listener io.Writer, binary string, args []string, extra ...*os.File) (*process, error) {
	monitor, monitorEnd, err := socketPair("qmp")
	if err != nil {
		return nil, err
	}
	defer monitorEnd.Close()
	console, consoleEnd, err := socketPair("console")
	if err != nil {
		monitor.Close()
		return nil, err
	}
	defer consoleEnd.Close()

	p := &process{
		monitor: qmp.New(monitor),
		console: tail.New(consoleBytes),
		stderr:  tail.New(stderrBytes),
		drained: make(chan struct{}),
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = p.stderr, p.stderr
	cmd.ExtraFiles = append([]*os.File{monitorEnd, consoleEnd}, extra...)
	if p.child, err = child.StartIn(cmd, netns); err != nil {
		_ = p.monitor.Disconnect()
		console.Close()
		return nil, err
	}
	go p.drain(console, listener)
	return p, nil
}

// drain reads the console until QEMU closes it.
func (p *process) drain(console net.Conn, listener io.Writer) {
	defer close(p.drained)
	defer console.Close()
	_, _ = io.Copy(io.MultiWriter(p.console, listener), console)
}

// handshake waits until QEMU answers on its monitor.
func (p *process) handshake(ctx context.Context) error {
	err := p.monitor.Handshake(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dyingTime)
	defer cancel()
	select {
	case <-p.child.Done():
		return fmt.Errorf("QEMU ended at once: %s", exitReason(p.child.Err()))
	case <-ctx.Done():
		return err
	}
}

// kill ends QEMU and waits until it is reaped and all it printed is read.
func (p *process) kill(ctx context.Context) error {
	err := p.child.Kill(ctx)
	if err == nil {
		p.wait()
	}
	return err
}

// wait returns when QEMU is reaped and its console and monitor are read to their
// end.
func (p *process) wait() {
	<-p.child.Done()
	<-p.drained
	_ = p.monitor.Disconnect()
}

// tails is what the guest and QEMU said last, as part of an error.
func (p *process) tails() string {
	var text string
	if lines := p.console.Lines(consoleLines); lines != "" {
		text += "\n--- console of the guest ---\n" + lines
	}
	if lines := p.stderr.Lines(stderrLines); lines != "" {
		text += "\n--- QEMU ---\n" + lines
	}
	return text
}

func exitReason(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// socketPair makes a connected pair of Unix sockets: the first end for this
// process, the second for a child.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair for %s: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours) // a duplicate
	if err = errors.Join(err, ours.Close()); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair for %s: %w", name, err)
	}
	return conn, theirs, nil
}
