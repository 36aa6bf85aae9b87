package harness

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// Namespace is containerd's namespace of everything that the harness makes.
const Namespace = "erofsvm"

// maxRunDir keeps the sockets below a run directory within the 107 bytes of a
// Unix address; the longest is the shim's, in a directory with a SHA-256 in
// its name.
const maxRunDir = 36

// Options say which containerd to start. The zero value starts the newest
// release in a directory of its own that is removed at the end.
type Options struct {
	Release string // of containerd, one of Releases
	// Name makes the run directory .build/run/<Name>, whose images are kept
	// for the next run. Without a name nothing is kept.
	Name        string
	DefaultSize string // of the writable layer, default "64M"
	LogLevel    string // of containerd, default "info"
	// Snapshotter and Differ are keys of containerd's EROFS snapshotter and
	// differ, besides or instead of those that a run has anyway.
	Snapshotter, Differ map[string]any
	// ShimDir is put in front of PATH; default is the build folder's bin.
	ShimDir string
	// Enter runs the start of the daemon, on a thread of whose namespaces it is to
	// be; nil leaves it in those of the test.
	Enter func(start func() error) error
	// CRI has containerd serve the CRI; nil leaves it out. All that the harness
	// does itself is then in CRINamespace instead of Namespace.
	CRI *CRI
}

// dirs are the places of one private containerd.
type dirs struct {
	base      string // what is removed at the end, unless it has a name
	root      string // containerd's persistent data
	run       string // everything below is gone when the daemon has stopped
	state     string
	socket    string
	sandboxes string // the shim's state_dir
	cache     string // the shim's cache_dir
	traces    string // the shim's trace_dir
	log       string
}

// Containerd is a running private containerd.
type Containerd struct {
	tree    Tree
	options Options
	dirs    dirs
	group   *group
	command *exec.Cmd
	exited  chan struct{} // closed when the daemon has been waited for
	lock    *os.File
	started time.Time
	client  *client.Client
}

// Start starts a containerd and returns when it says that it is ready. Only one
// process at a time can use a named run directory; what an earlier one left
// behind there, however it ended, is removed first. Stop must be called.
func Start(ctx context.Context, tree Tree, o Options) (_ *Containerd, err error) {
	o = o.withDefaults(tree)
	if err := Need("tools", tree.Containerd(o.Release), tree.Ctr(o.Release), tree.MkfsErofs()); err != nil {
		return nil, err
	}
	c := &Containerd{tree: tree, options: o, exited: make(chan struct{}), started: time.Now()}
	defer func() {
		if err != nil {
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			defer cancel()
			err = errors.Join(fmt.Errorf("start containerd %s: %w", o.Release, err), c.Stop(stopping))
		}
	}()
	if err := c.makeDirs(ctx); err != nil {
		return c, err
	}
	if c.group, err = newGroup(groupName(c.dirs.base)); err != nil {
		return c, err
	}
	if err := c.sweep(ctx); err != nil {
		return c, err
	}
	if err := c.startDaemon(ctx); err != nil {
		return c, err
	}
	return c, c.connect()
}

func (c *Containerd) connect() (err error) {
	c.client, err = client.New(c.dirs.socket, client.WithDefaultNamespace(c.namespace()), client.WithTimeout(10*time.Second))
	return err
}

func (o Options) withDefaults(tree Tree) Options {
	set := func(value *string, otherwise string) {
		if *value == "" {
			*value = otherwise
		}
	}
	set(&o.Release, Releases[0])
	set(&o.DefaultSize, "64M")
	set(&o.LogLevel, "info")
	set(&o.ShimDir, filepath.Dir(tree.Shim()))
	return o
}

// makeDirs makes the run directory below .build/run and locks it, and removes
// those of test binaries that were killed.
func (c *Containerd) makeDirs(ctx context.Context) (err error) {
	parent := c.tree.Build("run")
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return err
	}
	// Nobody shall take a directory that is not locked yet for an abandoned one.
	making, err := lockDir(parent, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer making.Close()
	if err := sweepAbandoned(ctx, c.tree, parent); err != nil {
		return fmt.Errorf("remove what a killed run left: %w", err)
	}
	base := filepath.Join(parent, c.options.Name)
	if c.options.Name == "" {
		base, err = os.MkdirTemp(parent, unnamed)
	} else {
		err = os.MkdirAll(base, 0o711)
	}
	if err != nil {
		return err
	}
	c.dirs = placeDirs(base)
	if c.lock, err = lockDir(base, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(c.dirs.log), os.RemoveAll(c.dirs.traces)) // of an earlier run
}

// unnamed is what run directories begin with that are not kept.
const unnamed = "t"

// placeDirs says where things lie in a run directory. Where its path is too long
// for sockets, those go to the system's temporary directory.
func placeDirs(base string) dirs {
	run := filepath.Join(base, "r")
	if len(run) > maxRunDir {
		// Another tree can have a run directory of the same name.
		run = filepath.Join(os.TempDir(), fmt.Sprintf("erofsvm-%s-%08x", filepath.Base(base), crc32.ChecksumIEEE([]byte(base))))
	}
	return dirs{
		base:      base,
		root:      filepath.Join(base, "root"),
		run:       run,
		state:     filepath.Join(run, "c"),
		socket:    filepath.Join(run, "c.sock"),
		sandboxes: filepath.Join(run, "s"),
		cache:     filepath.Join(base, "cache"),
		traces:    filepath.Join(base, "traces"),
		log:       filepath.Join(base, "containerd.log"),
	}
}

// Places are where the named run directory of a tree keeps what ends with the
// run: run is the folder of sockets and state, sandboxes the shim's state_dir
// below it.
func Places(tree Tree, name string) (run, sandboxes string) {
	d := placeDirs(tree.Build("run", name))
	return d.run, d.sandboxes
}

func groupName(base string) string { return "erofsvm-" + filepath.Base(base) }

// sweepAbandoned removes the unnamed run directories that nobody holds, with
// what still runs in them.
func sweepAbandoned(ctx context.Context, tree Tree, parent string) error {
	found, err := filepath.Glob(filepath.Join(parent, unnamed+"[0-9]*"))
	var errs []error
	for _, base := range found {
		lock, err := lockDir(base, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // in use
		}
		old := &Containerd{tree: tree, dirs: placeDirs(base), lock: lock, started: time.Now()}
		if old.group, err = newGroup(groupName(base)); err != nil {
			errs = append(errs, err, lock.Close())
			continue
		}
		errs = append(errs, old.Stop(ctx))
	}
	return errors.Join(append(errs, err)...)
}

func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another run: %w", dir, err)
	}
	return f, nil
}

// startDaemon starts containerd in the group and in a process group of its own,
// so that a Ctrl-C at the terminal reaches only the program that will stop it.
func (c *Containerd) startDaemon(ctx context.Context) error {
	for _, dir := range []string{c.dirs.root, c.dirs.run, c.dirs.state, c.dirs.sandboxes, c.dirs.cache, c.dirs.traces} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	config := filepath.Join(c.dirs.run, "containerd.toml")
	if err := writeTOML(config, containerdConfig(c.dirs, c.options)); err != nil {
		return err
	}
	if err := shimConfig(c.tree, c.dirs).Write(c.ShimConfigPath()); err != nil {
		return err
	}
	if c.options.CRI != nil {
		if err := c.options.CRI.writeConfigs(c.tree, c.dirs); err != nil {
			return err
		}
	}
	notify, err := newNotify(filepath.Join(c.dirs.run, "notify"))
	if err != nil {
		return err
	}
	defer notify.Close()
	logFile, err := os.OpenFile(c.dirs.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cgroup, err := c.group.open()
	if err != nil {
		return err
	}
	defer cgroup.Close()

	c.command = exec.Command(c.tree.Containerd(c.options.Release), "--config", config)
	c.command.Stdout, c.command.Stderr = logFile, logFile
	c.command.Dir = c.dirs.base
	c.command.Env = append(c.environment(), "NOTIFY_SOCKET="+notify.path)
	c.command.SysProcAttr = inGroup(cgroup)
	start := c.command.Start
	if c.options.Enter != nil {
		start = func() error { return c.options.Enter(c.command.Start) }
	}
	if err := start(); err != nil {
		return err
	}
	go func(command *exec.Cmd, exited chan struct{}) {
		_ = command.Wait() // its log says why it ended
		close(exited)
	}(c.command, c.exited)

	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := notify.wait(ready, c.exited); err != nil {
		return fmt.Errorf("%w; the end of %s:\n%s", err, c.dirs.log, c.LogTail(20))
	}
	return nil
}

// environment is the caller's with the tools in front of PATH. The shim gets it
// from containerd.
func (c *Containerd) environment() []string {
	path := strings.Join([]string{
		c.options.ShimDir,
		filepath.Dir(c.tree.Containerd(c.options.Release)),
		filepath.Dir(c.tree.MkfsErofs()),
		os.Getenv("PATH"),
	}, ":")
	env := make([]string, 0, len(os.Environ())+1)
	for _, entry := range os.Environ() {
		// The socket and namespace of the caller's own containerd, if set,
		// would lead ctr astray.
		if !strings.HasPrefix(entry, "PATH=") && !strings.HasPrefix(entry, "CONTAINERD_") {
			env = append(env, entry)
		}
	}
	// ctr would repeat the daemon's deprecations, such as of cgroup v1, on the
	// stream that the tests read.
	return append(env, "PATH="+path, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=true")
}

// namespace is where the harness makes things.
func (c *Containerd) namespace() string {
	if c.options.CRI != nil {
		return CRINamespace
	}
	return Namespace
}

// Socket is that of containerd's gRPC services.
func (c *Containerd) Socket() string { return c.dirs.socket }

// Client talks to this containerd, in Namespace.
func (c *Containerd) Client() *client.Client { return c.client }

// Cgroup is the path of the cgroup in the hierarchy of version 2 that everything is in
// that descends from the daemon. Cgroups of tests lie below it, so that this stays so.
func (c *Containerd) Cgroup() string { return "/" + filepath.Base(c.group.dir) }

// Release is the release that runs.
func (c *Containerd) Release() string { return c.options.Release }

// Pid is the daemon's process id.
func (c *Containerd) Pid() int { return c.command.Process.Pid }

// Dir is the run directory.
func (c *Containerd) Dir() string { return c.dirs.base }

// TraceDir is where the shim writes a trace for each sandbox.
func (c *Containerd) TraceDir() string { return c.dirs.traces }

// CacheDir is the shim's cache_dir.
func (c *Containerd) CacheDir() string { return c.dirs.cache }

// SandboxDir is the shim's state_dir.
func (c *Containerd) SandboxDir() string { return c.dirs.sandboxes }

// ShimConfigPath is the configuration that --runtime-config-path should name.
func (c *Containerd) ShimConfigPath() string { return filepath.Join(c.dirs.run, "shim.toml") }

// ShimConfig is the configuration at ShimConfigPath, as a fresh copy to change
// and to write elsewhere.
func (c *Containerd) ShimConfig() ShimConfig { return shimConfig(c.tree, c.dirs) }

// Ctr is a ctr command for this containerd. It is in a process group of its
// own, so that a Ctrl-C reaches it only through its caller.
func (c *Containerd) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.tree.Ctr(c.options.Release),
		append([]string{"--address", c.dirs.socket, "--namespace", c.namespace()}, args...)...)
	cmd.Env = c.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// LogFile is where the daemon's log lies, which goes on when it is restarted.
func (c *Containerd) LogFile() string { return c.dirs.log }

// LogTail returns the last lines of the daemon's log, where the shims' logs go
// too.
func (c *Containerd) LogTail(lines int) string {
	f, err := os.Open(c.dirs.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 64 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Stop ends the daemon and everything that descends from it, unmounts and
// removes what is left, and says what should not have been left. It may be
// called more than once, and after a Start that failed.
func (c *Containerd) Stop(ctx context.Context) error {
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.Close())
		c.client = nil
	}
	if c.command != nil && c.command.Process != nil {
		_ = c.command.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case <-c.exited:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("containerd does not stop: %w", ctx.Err()))
		}
	}
	if c.group != nil {
		errs = append(errs, c.sweep(ctx), c.group.remove(ctx), c.removePodCgroups())
	}
	if c.lock != nil {
		if c.options.Name == "" {
			errs = append(errs, os.RemoveAll(c.dirs.base))
		}
		errs = append(errs, c.lock.Close())
		c.lock = nil
	}
	return errors.Join(errs...)
}

// Restart stops the daemon, leaves the shims alone, and starts it again.
// Client's value changes.
func (c *Containerd) Restart(ctx context.Context) error {
	return c.restart(ctx, syscall.SIGTERM, func() {})
}

// RestartAfter is Restart with something that is done while there is no daemon.
func (c *Containerd) RestartAfter(ctx context.Context, meanwhile func()) error {
	return c.restart(ctx, syscall.SIGTERM, meanwhile)
}

// Crash is Restart for a daemon that has no time to stop.
func (c *Containerd) Crash(ctx context.Context) error {
	return c.restart(ctx, syscall.SIGKILL, func() {})
}

func (c *Containerd) restart(ctx context.Context, end syscall.Signal, meanwhile func()) error {
	if err := c.client.Close(); err != nil {
		return err
	}
	if err := c.command.Process.Signal(end); err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	select {
	case <-c.exited:
	case <-ctx.Done():
		return fmt.Errorf("containerd does not stop: %w", ctx.Err())
	}
	meanwhile()
	c.exited = make(chan struct{})
	if err := c.startDaemon(ctx); err != nil {
		return fmt.Errorf("start containerd again: %w", err)
	}
	return c.connect()
}

// tasks is where a daemon keeps the working directories of tasks, none of which
// outlives it here.
func (c *Containerd) tasks() string {
	return filepath.Join(c.dirs.root, "io.containerd.runtime.v2.task")
}

// sweep removes processes, mounts and the directories for tasks of whoever used
// the directory before.
func (c *Containerd) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var errs []error
	pids, err := c.group.pids()
	if err != nil {
		errs = append(errs, err)
	}
	if len(pids) > 0 {
		errs = append(errs, c.group.kill(ctx))
		// A shim that was killed cannot remove its socket, which lies outside.
		dead, err := c.deadShimSockets()
		errs = append(errs, err)
		for _, path := range dead {
			errs = append(errs, os.Remove(path))
		}
		// The group is gone with its processes; the next daemon needs one.
		if c.group, err = newGroup(filepath.Base(c.group.dir)); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, unmountBelow(c.dirs.base), unmountBelow(c.dirs.run), os.RemoveAll(c.dirs.run), os.RemoveAll(c.tasks()))
	return errors.Join(errs...)
}
