package sandbox

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestCleanupRemovesWhatTheRecordNamesAndCanRunTwice(t *testing.T) {
	bundle, state := t.TempDir(), t.TempDir()
	dir := sandboxDir(state, bundle)
	if err := makeSandboxDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "layers.vmdk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeRecord(bundle, record{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Cleanup(t.Context(), bundle); err != nil {
			t.Fatal(err)
		}
		if exists(t, dir) || exists(t, filepath.Join(bundle, recordName)) {
			t.Fatal("directory or record is left")
		}
	}
}

func TestCleanupKillsOnlyTheProcessThatWasRecorded(t *testing.T) {
	bundle := t.TempDir()
	bystander := exec.Command("sleep", "60")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	})
	// The pid was given to another process since: another start time.
	var vm qemu.Record
	vm.QEMU.Pid, vm.QEMU.StartTime = bystander.Process.Pid, 1
	vm.Dir = filepath.Join(t.TempDir(), "vm")
	if err := writeRecord(bundle, record{VM: &vm}); err != nil {
		t.Fatal(err)
	}
	pid, err := Cleanup(t.Context(), bundle)
	if err != nil || pid != bystander.Process.Pid {
		t.Errorf("Cleanup = %d, %v", pid, err)
	}
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the bystander is gone: %v", err)
	}
}

func TestCleanupLeavesDirectoriesOfOthersAlone(t *testing.T) {
	bundle, other := t.TempDir(), t.TempDir()
	precious := filepath.Join(other, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeRecord(bundle, record{Dir: other}); err != nil {
		t.Fatal(err)
	}
	if _, err := Cleanup(t.Context(), bundle); err == nil {
		t.Error("no error")
	}
	if !exists(t, precious) {
		t.Error("a file of somebody else was removed")
	}
}

func TestCleanupOfAPodsMemberTouchesNothing(t *testing.T) {
	if pid, err := Cleanup(t.Context(), t.TempDir()); pid != 0 || err != nil {
		t.Errorf("Cleanup = %d, %v", pid, err)
	}
}

func TestCleanupOfADamagedRecordIsAnError(t *testing.T) {
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	var syntax *json.SyntaxError
	if _, err := Cleanup(t.Context(), bundle); !errors.As(err, &syntax) {
		t.Errorf("error %v", err)
	}
}

func TestSandboxDirIsShortWhateverTheIdsAre(t *testing.T) {
	long := "/run/containerd/io.containerd.runtime.v2.task/" + string(make([]byte, 200))
	if n := len(filepath.Join(sandboxDir("/run/erofsvm", long), "vm", "vsock.sock_1028")); n > 107 {
		t.Errorf("a socket there has a path of %d bytes", n)
	}
}
