// Package vm drives one sandbox of the runtime directly, without containerd and
// without a shim process, so that many containers can come and go in one VM.
//
// A VM owns a sandbox, a short directory with its state, the bundles of its
// containers and the goroutines that read their output. Its methods may be
// called from any goroutine; a Container's by one at a time. It makes no
// layers, and checks nothing of what it runs.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
	"github.com/erofsvm/erofsvm/test/harness"
)

// VM is a sandbox, whose virtual machine boots with its first container.
type VM struct {
	// Config is that of the runtime.
	Config  configs.Config
	dir     string
	sandbox *sandbox.Sandbox
	serial  atomic.Int64
	lines   *lines
}

// New returns a VM of what the tree has built. change may change the
// configuration before it is read. Close must be called.
func New(tree harness.Tree, change func(harness.ShimConfig)) (_ *VM, err error) {
	if err := harness.Need("tools", tree.MkfsErofs(), tree.QEMU()); err != nil {
		return nil, err
	}
	if err := harness.Need("guest-image", tree.Kernel(), tree.Initrd()); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "vm") // short, for the sockets below it
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	// What is found out about the host is kept between runs.
	file := harness.BuiltConfig(tree, filepath.Join(dir, "s"), tree.Build("run", "cache"))
	if change != nil {
		change(file)
	}
	path := filepath.Join(dir, "shim.toml")
	if err := file.Write(path); err != nil {
		return nil, err
	}
	v := &VM{dir: dir, lines: newLines()}
	if v.Config, err = configs.Load(path); err != nil {
		return nil, err
	}
	logger := logrus.New()
	logger.SetOutput(v.lines)
	logger.SetLevel(logrus.DebugLevel)
	logger.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableQuote: true})
	v.sandbox = sandbox.New("test", nobody{}, nil, logrus.NewEntry(logger))
	return v, nil
}

// Close ends the virtual machine, if there is one, and removes what New made.
func (v *VM) Close(ctx context.Context) error {
	return errors.Join(v.sandbox.Close(ctx), os.RemoveAll(v.dir))
}

// Pid is QEMU's process id, 0 while there is no virtual machine.
func (v *VM) Pid() int { return v.sandbox.Pid() }

// Log is what the runtime has logged.
func (v *VM) Log() string { return v.lines.String() }

// WaitLog waits for a line in the log that has all the parts, and returns it.
func (v *VM) WaitLog(ctx context.Context, parts ...string) (string, error) {
	for from := 0; ; {
		all, more := v.lines.since()
		for ; from < len(all); from++ {
			if hasAll(all[from], parts) {
				return all[from], nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for a line of the log with %q: %w", parts, ctx.Err())
		}
	}
}

func hasAll(line string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(line, p) {
			return false
		}
	}
	return true
}

// nobody takes the events of a sandbox and does nothing with them.
type nobody struct{}

func (nobody) Created(*sandbox.CreateRequest, int)      {}
func (nobody) Started(string, int)                      {}
func (nobody) ExecAdded(string, string)                 {}
func (nobody) ExecStarted(string, string, int)          {}
func (nobody) OOM(string)                               {}
func (nobody) Paused(string)                            {}
func (nobody) Resumed(string)                           {}
func (nobody) Exited(string, string, int, sandbox.Exit) {}
func (nobody) Deleted(string, int, sandbox.Exit)        {}

// lines keeps what is written to it.
type lines struct {
	mu   sync.Mutex
	all  []string
	more chan struct{} // closed with the next line
}

func newLines() *lines { return &lines{more: make(chan struct{})} }

// Write takes whole lines, as a logger writes them.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, strings.TrimSuffix(string(p), "\n"))
	close(l.more)
	l.more = make(chan struct{})
	return len(p), nil
}

// since returns all lines so far, and what tells of the next one.
func (l *lines) since() ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[:len(l.all):len(l.all)], l.more
}

func (l *lines) String() string {
	all, _ := l.since()
	return strings.Join(all, "\n")
}
