package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/test/need"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// tree clones the mount at path as the shim does.
func tree(t *testing.T, path string) *os.File {
	t.Helper()
	need.Root(t, "to clone mounts")
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { f.Close() })
	return f
}

// source is a directory with a file, and one with a mount below.
func source(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mount(t *testing.T, fstype, target string, flags uintptr) {
	t.Helper()
	need.Root(t, "to mount")
	if err := unix.Mount(fstype, target, fstype, flags, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// inNamespace runs a shell in the namespace that a daemon would get.
func inNamespace(t *testing.T, cfg Config, script string) (string, error) {
	t.Helper()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		if err := mountAll(cfg); err != nil {
			done <- result{err: err}
			return
		}
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = cfg.Dir
		out, err := cmd.CombinedOutput()
		done <- result{out, err}
	}()
	r := <-done
	return string(r.out), r.err
}

// TestOnlyTheEntriesAreMounted, read-only where they are to be, and nothing of it
// on the host.
func TestOnlyTheEntriesAreMounted(t *testing.T) {
	src := source(t)
	mount(t, "tmpfs", filepath.Join(src, "below"), 0)
	if err := os.WriteFile(filepath.Join(src, "below/deep"), []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := Config{Dir: dir, Entries: []Entry{
		{Name: "0", Tree: tree(t, src)},
		{Name: "1", Tree: tree(t, src), ReadOnly: true},
		{Name: "2", Tree: tree(t, filepath.Join(src, "file"))},
	}}
	out, err := inNamespace(t, cfg, `ls; cat 0/file 0/below/deep 1/below/deep 2; echo; echo new > 0/new && cat 1/new
		for f in new 0/new 1/new 1/below/new; do echo x > $f && echo $f; done 2>/dev/null
		mknod -m 600 0/null c 1 3 && echo x > 0/null; rm -f 0/null; true`)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	want := []string{"0", "1", "2", "of the hostdeepdeepof the host", "new", "0/new"}
	if len(lines) != len(want)+1 || !slices.Equal(lines[:len(want)], want) || !strings.Contains(lines[len(want)], "denied") {
		t.Errorf("%q, want %q and a device that cannot be opened", lines, want)
	}
	if text, err := os.ReadFile(filepath.Join(src, "new")); err != nil || string(text) != "x\n" {
		t.Errorf("the host reads %q: %v", text, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the host sees %v in %s: %v", entries, dir, err)
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		t.Errorf("mounted on the host: %v, %v", mounted, err)
	}
}

// TestFilesystemsOfTheKernelAreHidden below an entry, and stay where they are on
// the host.
func TestFilesystemsOfTheKernelAreHidden(t *testing.T) {
	src := source(t)
	below := filepath.Join(src, "below")
	mount(t, "tmpfs", src, 0)
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, "proc", below, 0)
	cfg := Config{Dir: t.TempDir(), Entries: []Entry{{Name: "0", Tree: tree(t, src)}, {Name: "1", Tree: tree(t, src), Receive: true}}, Hide: []string{"proc"}}
	if out, err := inNamespace(t, cfg, "ls -d 0/below && ls 0/below 1/below | wc -l"); err != nil || out != "0/below\n3\n" {
		t.Errorf("%v: %q", err, out)
	}
	if _, err := os.Stat(filepath.Join(below, "self")); err != nil {
		t.Errorf("gone from the host: %v", err)
	}
}

// TestLaterMountsOfTheHostAreReceivedWhereAskedFor.
func TestLaterMountsOfTheHostAreReceivedWhereAskedFor(t *testing.T) {
	src := source(t)
	mount(t, "tmpfs", src, 0)
	if err := unix.Mount("", src, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	later := filepath.Join(src, "later")
	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := Config{Dir: dir, Entries: []Entry{{Name: "0", Tree: tree(t, src)}, {Name: "1", Tree: tree(t, src), Receive: true}}}
	// The shell makes a further namespace, as the daemon does, and says when.
	ready, mounted := filepath.Join(t.TempDir(), "ready"), filepath.Join(t.TempDir(), "mounted")
	for _, fifo := range []string{ready, mounted} {
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(ready)
		if err == nil {
			err = unix.Mount("tmpfs", later, "tmpfs", 0, "")
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(later, "here"), nil, 0o644)
		}
		done <- errors.Join(err, os.WriteFile(mounted, nil, 0))
	}()
	t.Cleanup(func() { _ = unix.Unmount(later, unix.MNT_DETACH) })
	out, err := inNamespace(t, cfg, fmt.Sprintf("unshare -m --propagation slave sh -c ': > %s; cat %s; cd %s; ls 0/later 1/later'", ready, mounted, dir))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err != nil || strings.Join(strings.Fields(out), " ") != "0/later: 1/later: here" {
		t.Errorf("%v: %q", err, out)
	}
}

// TestADaemonEndsWithItsConnectionOrByClose and leaves nothing.
func TestADaemonEndsWithItsConnectionOrByClose(t *testing.T) {
	for name, end := range map[string]func(*Daemon) error{
		"connection": func(d *Daemon) error { d.Release(); return nil },
		"close":      func(d *Daemon) error { return d.Close(within(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d, err := Start(Config{Binary: testguest.Virtiofsd(t), Dir: dir, Entries: []Entry{{Name: "0", Tree: tree(t, source(t))}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close(within(t)) })
			answers(t, d)
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("the host sees %v in %s: %v", entries, dir, err)
			}
			inside := children(t, d.Identity().Pid)
			if len(inside) == 0 {
				t.Fatal("the daemon has no process in a sandbox")
			}
			if limit := openFiles(t, inside[0]); limit < 100_000 && limit < hardLimit(t) {
				t.Errorf("the daemon may open %d files", limit)
			}
			if err := end(d); err != nil {
				t.Fatal(err)
			}
			select {
			case <-d.Done():
			case <-within(t).Done():
				t.Fatal("it does not end")
			}
			for _, pid := range inside {
				if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
					t.Errorf("process %d: %v", pid, err)
				}
			}
		})
	}
}

// answers sends VHOST_USER_GET_FEATURES as QEMU does (docs/interop/vhost-user.rst)
// and waits for the answer.
func answers(t *testing.T, d *Daemon) {
	t.Helper()
	fd, err := unix.Dup(int(d.Conn().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "vhost-user")
	defer f.Close()
	if _, err := f.Write([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
	answer := make([]byte, 20)
	if n, err := f.Read(answer); err != nil || n != len(answer) || answer[0] != 1 {
		t.Fatalf("%v, %d bytes: %v%s", answer, n, err, d.Says())
	}
}

// openFiles is how many files a process may open.
func openFiles(t *testing.T, pid int) uint64 {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Cur
}

func hardLimit(t *testing.T) uint64 {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return limit.Max
}

func children(t *testing.T, pid int) []int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, child)
	}
	return pids
}

// TestABadConfigurationIsRefused before anything is made of it.
func TestABadConfigurationIsRefused(t *testing.T) {
	for name, entries := range map[string][]Entry{
		"nothing":        nil,
		"upwards":        {{Name: ".."}},
		"a path":         {{Name: "a/b"}},
		"the same twice": {{Name: "0"}, {Name: "0"}},
		"too many":       make([]Entry, maxEntries+1),
	} {
		if _, err := Start(Config{Binary: "/bin/false", Dir: t.TempDir(), Entries: entries}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestAnErrorLeavesNothing: neither a process nor a socket nor a mount.
func TestAnErrorLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	device, err := os.OpenFile("/dev/null", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	_, err = Start(Config{Binary: "/bin/false", Dir: dir, Entries: []Entry{{Name: "0", Tree: device}}})
	if err == nil || os.Getuid() == 0 && !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("error %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v: %v", entries, err)
	}
}

// TestADaemonOfAnotherKindSaysWhy: that of QEMU 7.2 has other options.
func TestADaemonOfAnotherKindSaysWhy(t *testing.T) {
	d, err := Start(Config{Binary: "/bin/cat", Dir: t.TempDir(), Entries: []Entry{{Name: "0", Tree: tree(t, source(t))}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close(within(t)) })
	select {
	case <-d.Done():
	case <-within(t).Done():
		t.Fatal("it does not end")
	}
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), "unrecognized option") {
		t.Errorf("error %v", err)
	}
}
