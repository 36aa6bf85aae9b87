package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
)

func TestGuestThatPanicsEndsTheWaitWithItsConsole(t *testing.T) {
	spec := guestSpec(t)
	spec.KernelParams = []string{"testguest=exit"}
	m := start(t, spec)
	err := m.WaitReady(within(t))
	if !errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), "Kernel panic - not syncing: Attempted to kill init!") {
		t.Errorf("error is %v", err)
	}
	if got := m.Err(); got == nil || err == nil || got.Error() != err.Error() {
		t.Errorf("Err is %v", got)
	}
	wantNothingLeft(t, m.Record()) // before anybody kills it
}

func TestAgentThatNeverAnswersMeetsTheDeadline(t *testing.T) {
	spec := guestSpec(t)
	spec.KernelParams = []string{"testguest=silent"}
	m := start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := m.WaitReady(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), "1028") {
		t.Errorf("error is %v", err)
	}
	if err := m.Kill(within(t)); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, m.Record())
}

func TestDeathOfTheVsockDaemonEndsTheMachine(t *testing.T) {
	m := start(t, stoppedSpec(t))
	if err := m.Record().VsockDaemon.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Err(); !errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), "vhost-device-vsock ended") {
		t.Errorf("error is %v", err)
	}
	wantNothingLeft(t, m.Record())
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	script := func(body string) string {
		path := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	notKernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(notKernel, []byte("not a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Spec)
		says   []string
	}{
		"QEMU exits at once":      {func(s *Spec) { s.Binary = script("echo no luck today >&2; exit 7") }, []string{"exit status 7", "no luck today"}},
		"QEMU is killed at once":  {func(s *Spec) { s.Binary = script("kill -SEGV $$") }, []string{"segmentation fault"}},
		"QEMU never answers":      {func(s *Spec) { s.Binary = script("exec sleep 1000") }, []string{"deadline exceeded"}},
		"QEMU is no program":      {func(s *Spec) { s.Binary = notExecutableFormat(t) }, []string{"exec format error"}},
		"the kernel is none":      {func(s *Spec) { s.Kernel = notKernel }, []string{"kernel"}},
		"the vsock daemon is not": {func(s *Spec) { s.VsockDaemon = "/no/such/daemon" }, []string{"/no/such/daemon"}},
		"the path is too long":    {func(s *Spec) { s.Dir += strings.Repeat("x", 100) }, []string{"107"}},
		"the record is not kept":  {func(s *Spec) { s.OnStarted = func(Record) error { return errors.New("disk full") } }, []string{"disk full"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := stoppedSpec(t)
			tc.change(&spec)
			var record Record
			if spec.OnStarted == nil {
				spec.OnStarted = func(r Record) error { record = r; return nil }
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			m, err := Start(ctx, spec)
			if err == nil {
				_ = m.Kill(within(t))
				t.Fatal("no error")
			}
			for _, say := range tc.says {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("the error does not say %q: %v", say, err)
				}
			}
			record.Dir = spec.Dir
			wantNothingLeft(t, record)
		})
	}
}

func notExecutableFormat(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte{0, 1, 2, 3}, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDirectoryOfAnotherMachineIsRefusedAndKept(t *testing.T) {
	spec := stoppedSpec(t)
	m := start(t, spec)
	if _, err := Start(within(t), spec); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("error is %v", err)
	}
	if entries, err := os.ReadDir(spec.Dir); err != nil || len(entries) == 0 {
		t.Errorf("the first machine's directory has %d entries, %v", len(entries), err)
	}
	if err := m.Err(); err != nil {
		t.Error(err)
	}
}

// ownerMode makes the test binary the owner of a VM: it starts the Spec that the
// variable holds, prints the Record and waits to be killed.
const ownerMode = "QEMU_TEST_OWNER"

func ownVM() int {
	var spec Spec
	if err := json.Unmarshal([]byte(os.Getenv(ownerMode)), &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	spec.stopped = true
	m, err := Start(context.Background(), spec)
	if err == nil && spec.Virtiofsd != "" {
		err = shareRoot(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Record()); err != nil {
		return 1
	}
	<-m.Done()
	return 1
}

// shareRoot attaches a share of the root directory, without what is mounted in it.
func shareRoot(m *Machine) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	tree := os.NewFile(uintptr(fd), "/")
	defer tree.Close()
	return m.AttachShare(context.Background(), hypervisor.Share{ID: "root", Entries: []hypervisor.ShareEntry{{Name: "0", Tree: tree, ReadOnly: true}}})
}

func TestMachineOfAKilledOwnerIsGoneAndCleanupRemovesTheRest(t *testing.T) {
	spec := guestSpec(t)
	if os.Getuid() == 0 {
		spec.Virtiofsd = testguest.Virtiofsd(t)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.CommandContext(within(t), os.Args[0])
	owner.Env = append(os.Environ(), ownerMode+"="+string(b))
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var record Record
	if err := json.Unmarshal(line, &record); err != nil {
		t.Fatal(err)
	}
	var watched []unix.PollFd
	pids := []int{record.QEMU.Pid, record.VsockDaemon.Pid}
	for _, daemon := range record.Shares {
		pids = append(pids, daemon.Pid)
	}
	for _, id := range pids {
		fd, err := unix.PidfdOpen(id, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	for i := range watched {
		if n, err := unix.Poll(watched[i:i+1], 5000); n != 1 {
			t.Errorf("process %d of the VM outlives its owner (%v)", i, err)
		}
	}
	for range 2 {
		if err := Cleanup(within(t), record); err != nil {
			t.Error(err)
		}
	}
	// Who inherits the dead processes reaps them when it likes.
	wantNothingLeft(t, Record{Dir: record.Dir})
}

func TestCleanupEndsARunningMachine(t *testing.T) {
	m := start(t, stoppedSpec(t))
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := Cleanup(within(t), m.Record()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	<-m.Done()
	wantNothingLeft(t, m.Record())
}

func TestCleanupRemovesNothingThatIsNotOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, "", "relative", "/tmp/../etc"} {
		if err := Cleanup(within(t), Record{Dir: d}); err == nil {
			t.Errorf("no error for %q", d)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
