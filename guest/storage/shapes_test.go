package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/verity"
)

func TestLayersWithoutAnUpperAreAReadOnlyOverlay(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{
		"08/01": layer(t, map[string]string{"who": "top", "a": "a"}),
		"08/02": layer(t, map[string]string{"who": "bottom", "b": "b"}),
	}
	m, err := plan(t, base, lower("08/01"), lower("08/02")).Mount(t.Context(), base, disks.system())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"who": "top", "a": "a", "b": "b"} {
		if got, err := os.ReadFile(filepath.Join(m.Path, name)); string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.Path, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}

func TestUpperInMemoryIsBoundedAndGoneWithTheContainer(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	const size = 1 << 20
	p := plan(t, base, memory(fmt.Sprintf("size=%d", size), "mode=0755", optMkdir+"{{ mount 0 }}/upper:0750", optMkdir+"{{ mount 0 }}/work:0700"), lower("08/01"))
	disks := loopDisks{"08/01": layer(t, map[string]string{"a": "a"})}
	for range 2 {
		m, err := p.Mount(t.Context(), base, disks.system())
		if err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(m.Path); err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
		if st, err := os.Stat(m.Path); err != nil || st.Mode().Perm() != 0o750 {
			t.Errorf("root directory: %v, %v", st.Mode(), err)
		}
		if err := os.WriteFile(filepath.Join(m.Path, "fits"), make([]byte, size/2), 0o644); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(m.Path, "large"), make([]byte, size), 0o644); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("more than the bound: %v", err)
		}
		if err := m.Unmount(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, base)
	}
}

// TestPartitionsAreLayers tells the kernel where the partitions are, since not
// every machine's reads GPTs. That of the guest does, and that an address leads
// to them is tried in a VM, by the tests of cmd/erofsvm-agent.
func TestPartitionsAreLayers(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{"08/00": writable(t, t.TempDir())}
	for i, node := range partitioned(t, layerImage(t, map[string]string{"who": "top"}), layerImage(t, map[string]string{"who": "bottom", "b": "b"})) {
		disks[fmt.Sprintf("08/01 p%d", i+1)] = node
	}
	m, err := plan(t, base, upper(), lower("08/01", partition("1")...), lower("08/01", partition("2")...)).Mount(t.Context(), base, disks.system())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"who": "top", "b": "b"} {
		if got, err := os.ReadFile(filepath.Join(m.Path, name)); string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}

// partitioned makes a disk of the images, a partition each, and returns the
// nodes of the partitions.
func partitioned(t *testing.T, images ...string) []string {
	t.Helper()
	const align = 1 << 20
	var data []byte
	var partitions []unix.BlkpgPartition
	for i, image := range images {
		content, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		content = append(content, make([]byte, -len(content)&(align-1))...)
		partitions = append(partitions, unix.BlkpgPartition{Start: int64(len(data)), Length: int64(len(content)), Pno: int32(i + 1)})
		data = append(data, content...)
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	disk := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", disk).Run() })
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var nodes []string
	for _, p := range partitions {
		arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			t.Fatalf("add partition %d: %v", p.Pno, errno)
		}
		nodes = append(nodes, blockNode(t, fmt.Sprintf("%sp%d", disk, p.Pno)))
	}
	return nodes
}

// blockNode makes sure that a node is there: not every /dev is a devtmpfs.
func blockNode(t *testing.T, node string) string {
	t.Helper()
	if _, err := os.Stat(node); err == nil {
		return node
	}
	var major, minor uint32
	text, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(node), "dev"))
	if err == nil {
		_, err = fmt.Sscanf(string(text), "%d:%d", &major, &minor)
	}
	if err == nil {
		err = unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor)))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(node) })
	return node
}

// fakeVerity is a device mapper that shows the disk as it is, but for a root hash
// that it refuses.
type fakeVerity struct {
	mu      sync.Mutex
	refuse  string // root hash
	corrupt bool
	busy    map[string]bool // disks whose first Close fails
	open    map[string]bool // by disk
}

type fakeDevice struct {
	owner *fakeVerity
	disk  string
	node  string
}

func (f *fakeVerity) Open(l verity.Layer) (Protected, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.RootHash == f.refuse {
		return nil, fmt.Errorf("open disk %s: %w: %w", l.Disk, verity.ErrMismatch, errdefs.ErrDataLoss)
	}
	if f.open == nil {
		f.open = map[string]bool{}
	}
	f.open[l.Disk.String()] = true
	return &fakeDevice{f, l.Disk.String(), l.Node}, nil
}

func (d *fakeDevice) Node() string { return d.node }

func (d *fakeDevice) Corrupt() error {
	if d.owner.corrupt {
		return fmt.Errorf("disk %s: %w: %w", d.disk, verity.ErrMismatch, errdefs.ErrDataLoss)
	}
	return nil
}

// Close fails as the kernel does while something of the disk is mounted.
func (d *fakeDevice) Close() error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if bytes.Contains(text, []byte(" "+d.node+" ")) {
		return fmt.Errorf("%s: %w", d.node, unix.EBUSY)
	}
	d.owner.mu.Lock()
	defer d.owner.mu.Unlock()
	if d.owner.busy[d.disk] {
		delete(d.owner.busy, d.disk)
		return unix.EBUSY
	}
	delete(d.owner.open, d.disk)
	return nil
}

// stages notes what was loaded.
type stages struct {
	loaded []string
	fails  error
}

func (s *stages) Load(_ context.Context, stage string) error {
	s.loaded = append(s.loaded, stage)
	return s.fails
}

func TestProtectedLayersAreClosedAfterTheirUnmount(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{"08/00": writable(t, t.TempDir()), "08/01": layer(t, map[string]string{"a": "a"}), "1:2": layer(t, map[string]string{"b": "b"})}
	mapper, modules := &fakeVerity{}, &stages{}
	p := plan(t, base, upper(), lower("08/01", protected(someHash, "4096")...), onSCSI(lower("", protected(someHash, "4096")...), "1:2"))
	m, err := p.Mount(t.Context(), base, System{Disks: disks, Modules: modules, Verity: mapper})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{layout.StageVerity, layout.StageSCSI}; !slices.Equal(modules.loaded, want) {
		t.Errorf("loaded %v, want each once: %v", modules.loaded, want)
	}
	if len(mapper.open) != 2 {
		t.Errorf("open: %v", mapper.open)
	}
	if err := m.Unmount(); err != nil {
		t.Error(err)
	}
	if len(mapper.open) != 0 {
		t.Errorf("left open: %v", mapper.open)
	}
	nothingLeft(t, base)
}

func TestLayerThatStaysBusyDoesNotKeepTheOthers(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	disks := loopDisks{"08/01": layer(t, map[string]string{"a": "a"}), "08/02": layer(t, map[string]string{"b": "b"})}
	mapper := &fakeVerity{busy: map[string]bool{"08/01": true}}
	p := plan(t, base, memory("size=1048576"), lower("08/01", protected(someHash, "4096")...), lower("08/02", protected(someHash, "4096")...))
	m, err := p.Mount(t.Context(), base, System{Disks: disks, Modules: &stages{}, Verity: mapper})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "close disk 08/01") {
		t.Errorf("%v", err)
	}
	if len(mapper.open) != 1 || !mapper.open["08/01"] {
		t.Errorf("open: %v", mapper.open)
	}
	if err := m.Unmount(); err != nil || len(mapper.open) != 0 {
		t.Errorf("second time: %v, open: %v", err, mapper.open)
	}
	nothingLeft(t, base)
}

// TestFailedLayerTakesTheOthersDown fails at the last of many layers, in each of
// the ways that a protected one can.
func TestFailedLayerTakesTheOthersDown(t *testing.T) {
	if privateMounts(t) {
		return
	}
	const layers = 24 // more than are mounted at once
	badHash := strings.Repeat("f", 64)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	disks := loopDisks{"08/00": writable(t, t.TempDir())}
	for i := range layers {
		disks[fmt.Sprintf("09/%02x", i)] = layer(t, map[string]string{"a": "a"})
	}
	disks["0a/00"] = loop(t, garbage)
	for name, c := range map[string]struct {
		last    *pb.Storage
		corrupt bool
		fails   error
		class   error
		says    string
	}{
		"no filesystem":       {last: lower("0a/00"), says: "disk 0a/00: mount erofs"},
		"wrong root hash":     {last: lower("0a/00", protected(badHash, "4096")...), class: errdefs.ErrDataLoss, says: "0a/00"},
		"a corrupt layer":     {last: lower("0a/00", protected(someHash, "4096")...), corrupt: true, class: errdefs.ErrDataLoss, says: "0a/00"},
		"modules that fail":   {last: lower("0a/00", protected(someHash, "4096")...), fails: unix.ENOMEM, class: unix.ENOMEM, says: "prepare for disk"},
		"a disk that is late": {last: lower("0a/01"), class: context.DeadlineExceeded, says: "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			storages := []*pb.Storage{upper()}
			for i := range layers {
				storages = append(storages, lower(fmt.Sprintf("09/%02x", i), protected(someHash, "4096")...))
			}
			mapper := &fakeVerity{refuse: badHash, corrupt: c.corrupt}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := plan(t, base, append(storages, c.last)...).Mount(ctx, base, System{Disks: disks, Modules: &stages{fails: c.fails}, Verity: mapper})
			if err == nil || !strings.Contains(err.Error(), c.says) || (c.class != nil && !errors.Is(err, c.class)) {
				t.Errorf("%v, want %q of class %v", err, c.says, c.class)
			}
			if len(mapper.open) != 0 {
				t.Errorf("left open: %v", mapper.open)
			}
			nothingLeft(t, base)
		})
	}
}

func TestContainersStandSideBySide(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base := t.TempDir()
	const containers = 8
	disks := loopDisks{"08/01": layer(t, map[string]string{"shared": "by all"})}
	var plans [containers]Rootfs
	for i := range plans {
		id, source := fmt.Sprintf("c%d", i), fmt.Sprintf("09/%02x", i)
		disks[source] = layer(t, map[string]string{"own": id})
		storages := []*pb.Storage{memory("size=1048576"), lower(source), lower("08/01")}
		for _, s := range storages {
			s.MountPoint = RootfsPath(base, id)
		}
		var err error
		if plans[i], err = Plan(base, id, storages); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for _, p := range plans {
		all.Go(func() {
			m, err := p.Mount(t.Context(), base, disks.system())
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := os.ReadFile(filepath.Join(m.Path, "own")); string(got) != p.ID {
				t.Errorf("%s has %q, %v", p.ID, got, err)
			}
			if err := m.Unmount(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	nothingLeft(t, base)
}

// TestUnmountWritesBack holds the root filesystem by a second mount, as a container
// that is being made does for a moment: what was written must be on the disk all
// the same, since that is pulled next.
func TestUnmountWritesBack(t *testing.T) {
	if privateMounts(t) {
		return
	}
	base, other := t.TempDir(), t.TempDir()
	image := writableImage(t, t.TempDir())
	m, err := plan(t, base, upper(), lower("08/01")).Mount(t.Context(), base,
		loopDisks{"08/00": loop(t, image), "08/01": layer(t, map[string]string{"a": "a"})}.system())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(m.Path, other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	written := bytes.Repeat([]byte("was written"), 1000)
	if err := os.WriteFile(filepath.Join(m.Path, "file"), written, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(image); err != nil || !bytes.Contains(content, written[:4096]) {
		t.Errorf("it is not in the image: %v", err)
	}
	if err := unix.Unmount(other, 0); err != nil {
		t.Error(err)
	}
	nothingLeft(t, base)
}
