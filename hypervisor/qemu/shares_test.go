package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/test/need"
)

// sharing is a VM that shares can be attached to. Its disks are SCSI ones, so that
// the slots are those of shares alone.
func sharing(t *testing.T, spec Spec) Spec {
	t.Helper()
	spec.Virtiofsd, spec.BlockDriver = testguest.Virtiofsd(t), VirtioSCSI
	return spec
}

// entry shows a directory under a name, as the shim does.
func entry(t *testing.T, name, dir string, readOnly bool) hypervisor.ShareEntry {
	t.Helper()
	need.Root(t, "to clone mounts")
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		t.Fatal(err)
	}
	tree := os.NewFile(uintptr(fd), dir)
	t.Cleanup(func() { tree.Close() })
	return hypervisor.ShareEntry{Name: name, Tree: tree, ReadOnly: readOnly}
}

func attachShare(t *testing.T, m *Machine, id string, entries ...hypervisor.ShareEntry) {
	t.Helper()
	began := time.Now()
	if err := m.AttachShare(within(t), hypervisor.Share{ID: id, Entries: entries}); err != nil {
		t.Fatal(err)
	}
	t.Logf("share %s attached in %v", id, time.Since(began).Round(time.Millisecond))
}

// wantNoShare fails if anything of a share is left.
func wantNoShare(t *testing.T, m *Machine) {
	t.Helper()
	wantNoDisk(t, m)
	m.mu.Lock()
	slots, shares := m.shareSlots.count-len(m.shareSlots.free), len(m.shares)
	m.mu.Unlock()
	if slots != 0 || shares != 0 {
		t.Errorf("%d slots and %d daemons are left", slots, shares)
	}
	var chardevs []struct{ Label string }
	do(t, m, "query-chardev", nil, &chardevs)
	for _, c := range chardevs {
		if strings.HasPrefix(c.Label, "share-") {
			t.Errorf("QEMU still has %s", c.Label)
		}
	}
}

// TestSharesOfARunningGuest: it reads and writes what it is shown, and that alone;
// shares come and go, and the VM ends with the daemon of one.
func TestSharesOfARunningGuest(t *testing.T) {
	var recorded Record
	spec := sharing(t, guestSpec(t))
	spec.MaxMemoryMiB = 512
	spec.OnStarted = func(r Record) error { recorded = r; return nil }
	m := start(t, spec)
	dir, other := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	attachShare(t, m, "one", entry(t, "0", dir, false), entry(t, "1", dir, true))
	if err := m.WaitReady(within(t)); err != nil {
		t.Fatal(err)
	}
	g := dial(t, m)
	g.must("share one")
	var read struct{ Text string }
	if g.ask(&read, "read /tmp/one/1/file"); read.Text != "of the host" {
		t.Errorf("the guest reads %q", read.Text)
	}
	g.must("write /tmp/one/0/new of-the-guest")
	if text, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(text) != "of-the-guest" {
		t.Errorf("the host reads %q: %v", text, err)
	}
	for _, path := range []string{"/tmp/one/1/file", "/tmp/one/more"} {
		if err := g.does("write %s x", path); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("write %s: %v", path, err)
		}
	}

	// The daemon serves memory that comes later, too.
	if _, err := m.AddMemory(within(t), 384); err != nil {
		t.Error(err)
	}
	attachShare(t, m, "two", entry(t, "0", other, false))
	g.must("share two")
	g.must("write /tmp/two/0/x y")
	if n := len(recorded.Shares); n != 2 {
		t.Errorf("%d daemons are recorded", n)
	}
	first := m.Record().Shares
	for _, id := range []string{"one", "two"} {
		g.must("unmount %s", id)
		for range 2 {
			if err := m.Detach(within(t), id); err != nil {
				t.Error(err)
			}
		}
	}
	wantNoShare(t, m)
	for _, daemon := range first {
		if err := unix.Kill(daemon.Pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("daemon %d: %v", daemon.Pid, err)
		}
	}

	attachShare(t, m, "one", entry(t, "0", other, true))
	g.must("share one")
	if g.ask(&read, "read /tmp/one/0/x"); read.Text != "y" {
		t.Errorf("the guest reads %q", read.Text)
	}
	if err := unix.Kill(m.Record().Shares[0].Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-within(t).Done():
		t.Fatal("the VM outlives the daemon")
	}
	if err := m.Err(); !errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), `share "one": virtiofsd ended`) {
		t.Errorf("the VM ended with %v", err)
	}
}

// TestAFailedAttachShareLeavesNothing, whichever step failed.
func TestAFailedAttachShareLeavesNothing(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec = sharing(t, spec)
		m := start(t, spec)
		dir := t.TempDir()
		do(t, m, "device_add", map[string]any{"driver": "virtio-balloon-pci", "id": "virtio-taken", "bus": "bridge0", "addr": "1e"}, nil)
		for name, c := range map[string]struct {
			share  hypervisor.Share
			daemon string
			want   string
		}{
			"a name":     {hypervisor.Share{ID: "a,b", Entries: []hypervisor.ShareEntry{entry(t, "0", dir, false)}}, spec.Virtiofsd, "letters"},
			"no entries": {hypervisor.Share{ID: "a"}, spec.Virtiofsd, "0 files"},
			"a program":  {hypervisor.Share{ID: "a", Entries: []hypervisor.ShareEntry{entry(t, "0", dir, false)}}, "/bin/cat", "unrecognized option"},
			"a device":   {hypervisor.Share{ID: "taken", Entries: []hypervisor.ShareEntry{entry(t, "0", dir, false)}}, spec.Virtiofsd, "taken"},
		} {
			m.spec.Virtiofsd = c.daemon
			if err := m.AttachShare(within(t), c.share); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v", name, err)
			}
			wantNoShare(t, m)
			if entries, err := os.ReadDir(spec.Dir); err != nil || len(entries) > 3 { // the vsock's
				t.Errorf("%s: %v: %v", name, entries, err)
			}
		}
		m.spec.Virtiofsd = spec.Virtiofsd
		attachShare(t, m, "a", entry(t, "0", dir, false))
	})
}

// TestAVMWithoutADaemonTakesNoShare.
func TestAVMWithoutADaemonTakesNoShare(t *testing.T) {
	m := start(t, stoppedSpec(t))
	err := m.AttachShare(within(t), hypervisor.Share{ID: "a", Entries: []hypervisor.ShareEntry{entry(t, "0", t.TempDir(), false)}})
	if !errors.Is(err, ErrNoShares) {
		t.Errorf("error is %v", err)
	}
}
