// Package place runs this program again in a place of its own: private mounts,
// processes and network, in which the fixed paths that suites of others use
// (/etc, /run, /tmp, /var/lib) are folders of one run. When it ends, whatever
// was left there ends with it.
//
// It owns those namespaces and the folder that it is given. Main is called first
// thing in main, Command by any goroutine. Nothing is mounted, written or started
// outside of the namespaces and the folder.
package place

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place says what is to be found where. The zero value of each field adds
// nothing to what the host has.
type Place struct {
	// Dir holds what is written, a folder on a disk. It is emptied before, and
	// stays afterwards.
	Dir string
	// Dirs are absolute paths, outside /etc, that are empty folders below Dir.
	Dirs []string
	// Etc are files that lie over those of /etc, by their names below it.
	Etc map[string]string
	// Hosts are names that are this place.
	Hosts []string
}

// stageVar marks the process that makes the place, and carries the Place.
const stageVar = "EROFSVM_PLACE"

// Command is this program with the arguments, to run in the place, as root. When
// ctx ends, all that runs in the place is killed.
func (p Place) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	for _, path := range append([]string{p.Dir}, p.Dirs...) {
		if filepath.Clean(path) != path || !filepath.IsAbs(path) {
			return nil, fmt.Errorf("place: %q is not an absolute path", path)
		}
	}
	if err := os.RemoveAll(p.Dir); err != nil {
		return nil, fmt.Errorf("place: %w", err)
	}
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("place: %w", err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("place: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS, // Go makes the mounts private then
		Pdeathsig:    syscall.SIGKILL,
	}
	cmd.WaitDelay = 10 * time.Second
	return cmd, nil
}

// Main does nothing in an ordinary process. In one that Command has made it sets
// up the place, runs the program in it, and exits with its status.
func Main() {
	text, inside := os.LookupEnv(stageVar)
	if !inside {
		return
	}
	os.Unsetenv(stageVar)
	var p Place
	err := json.Unmarshal([]byte(text), &p)
	if err == nil {
		err = p.enter()
	}
	status := 1
	if err == nil {
		status, err = first()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "set up a place for the suite: %v\n", err)
	}
	os.Exit(status)
}

// first is what process 1 does: it starts the program once more, as an ordinary
// process, and takes in those whose parents are gone. The kernel ends whoever is
// left when it returns.
func first() (status int, err error) {
	self, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 1, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR || pid != self.Pid && err == nil:
			continue
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

// enter makes the place of what the process has: namespaces that are still like
// the host's.
func (p Place) enter() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := p.overEtc(); err != nil {
		return err
	}
	for _, path := range p.Dirs {
		below := filepath.Join(p.Dir, strings.ReplaceAll(strings.Trim(path, "/"), "/", "-"))
		if err := os.MkdirAll(below, 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(below, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", below, path, err)
		}
	}
	return loopbackUp()
}

// overEtc lays an overlay over /etc. Its upper layer is in memory, because not
// every filesystem can be one.
func (p Place) overEtc() error {
	memory := filepath.Join(p.Dir, "etc")
	upper, work := filepath.Join(memory, "upper"), filepath.Join(memory, "work")
	if err := os.MkdirAll(memory, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", memory, err)
	}
	files := map[string]string{}
	for name, text := range p.Etc {
		files[name] = text
	}
	if len(p.Hosts) > 0 {
		files["hosts"] = "127.0.0.1 localhost " + strings.Join(p.Hosts, " ") + "\n"
		// Without it a resolver may ask the network before it reads the file.
		files["nsswitch.conf"] = "hosts: files\n"
	}
	for name, text := range files {
		path := filepath.Join(upper, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", "/etc", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on /etc: %w", err)
	}
	return nil
}

// loopbackUp gives the network of the place its loopback, all that it has.
func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
