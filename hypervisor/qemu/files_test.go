package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor"
)

// extentSize is how long each file of a disk made by layers is.
const extentSize = 64 << 10

// filled is a file of extentSize bytes that are all b.
func filled(t testing.TB, b byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), fmt.Sprintf("layer-%d", b))
	if err := os.WriteFile(path, bytes.Repeat([]byte{b}, extentSize), 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// vmdkText is a descriptor of extents of extentSize bytes.
func vmdkText(names []string) ([]byte, error) {
	var text strings.Builder
	text.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n")
	for _, name := range names {
		fmt.Fprintf(&text, "RW %d FLAT \"%s\" 0\n", extentSize/512, name)
	}
	return []byte(text.String()), nil
}

// layers is a vmdk disk of open files.
func layers(id string, files ...*os.File) hypervisor.Disk {
	return hypervisor.Disk{ID: id, Driver: hypervisor.DriverVMDK, Path: "/layers", ReadOnly: true, Files: files, Descriptor: vmdkText}
}

// held are the files that QEMU has open, as the kernel names them, with the
// access that it has. Sockets and what the kernel makes have no path.
func held(t *testing.T, m *Machine) map[string][]int {
	t.Helper()
	m.tasks.Wait()
	dir := fmt.Sprintf("/proc/%d", m.Pid())
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := map[string][]int{}
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, "fd", e.Name()))
		if err != nil {
			continue // closed since
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", e.Name()))
		if err != nil {
			continue
		}
		_, after, _ := strings.Cut(string(info), "flags:")
		flags, err := strconv.ParseInt(strings.Fields(after)[0], 8, 64)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "/") {
			open[name] = append(open[name], int(flags))
		}
	}
	return open
}

// sets are the descriptor sets that QEMU has, with how many descriptors are in
// them. A set that is empty lives as long as a block node that was opened by it.
func sets(t *testing.T, m *Machine) map[int64]int {
	t.Helper()
	m.tasks.Wait()
	var list []struct {
		ID  int64             `json:"fdset-id"`
		FDs []json.RawMessage `json:"fds"`
	}
	do(t, m, "query-fdsets", nil, &list)
	found := map[int64]int{}
	for _, s := range list {
		found[s.ID] = len(s.FDs)
	}
	return found
}

// emptiesSetsWhilePaused: QEMU before 9.1 closes a set's own descriptor only while
// the VM runs. What a test of a paused one cannot ask of it, those of a running
// one do.
func emptiesSetsWhilePaused(m *Machine) bool {
	v := m.proc.monitor.Version().QEMU
	return v.Major > 9 || v.Major == 9 && v.Minor >= 1
}

// wantAsBefore fails if QEMU has a disk, a set or a file that it had not before.
func wantAsBefore(t *testing.T, m *Machine, before map[string][]int) {
	t.Helper()
	wantNoDisk(t, m)
	if !emptiesSetsWhilePaused(m) {
		return
	}
	if left := sets(t, m); len(left) > 0 {
		t.Errorf("descriptor sets are left: %v", left)
	}
	if now := held(t, m); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("QEMU has open\n%v\nand before\n%v", now, before)
	}
}

// onePerFile fails unless QEMU has each of the files open, once and with the
// access mode given.
func onePerFile(t *testing.T, m *Machine, access int, names ...string) {
	t.Helper()
	open := held(t, m)
	for _, name := range names {
		var modes []int
		for _, flags := range open[name] {
			modes = append(modes, flags&unix.O_ACCMODE)
		}
		if emptiesSetsWhilePaused(m) && len(modes) != 1 {
			t.Errorf("%s is open %d times", name, len(modes))
		}
		if len(modes) == 0 || slices.ContainsFunc(modes, func(mode int) bool { return mode != access }) {
			t.Errorf("%s is open with access %v, want %d", name, modes, access)
		}
	}
}

const (
	// sealedName is how the kernel names the memory that a descriptor lies in.
	sealedName = "/memfd:erofsvm-vmdk (deleted)"
	deleted    = " (deleted)"
)

// What was checked through an open file is what the guest reads, whatever
// happens to its name meanwhile.
func TestTheFileThatWasOpenedIsTheDisk(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver = VirtioSCSI // goes without a guest
		m := start(t, spec)
		before := held(t, m)
		renamed, replaced, removed := filled(t, 1), filled(t, 2), filled(t, 3)
		var files []*os.File
		for _, path := range []string{renamed, replaced, removed} {
			files = append(files, open(t, path, os.O_RDONLY))
		}
		for _, err := range []error{
			os.Rename(renamed, renamed+"-elsewhere"),
			os.Rename(filled(t, 9), replaced),
			os.Remove(removed),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Attach(within(t), layers("vmdk", files...)); err != nil {
			t.Fatal(err)
		}
		for i := range files {
			raw := shared(fmt.Sprintf("raw-%d", i), files[i])
			if _, err := m.Attach(within(t), raw); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range files { // of no more use to QEMU
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		wantContents(t, m, "vmdk", extentSize, 1, 2, 3)
		for i := range files {
			wantContents(t, m, fmt.Sprintf("raw-%d", i), extentSize, byte(i+1))
		}
		for i := range files {
			if err := m.Detach(within(t), fmt.Sprintf("raw-%d", i)); err != nil {
				t.Error(err)
			}
		}
		onePerFile(t, m, unix.O_RDONLY, renamed+"-elsewhere", replaced+deleted, removed+deleted, sealedName)
		if err := m.Detach(within(t), "vmdk"); err != nil {
			t.Error(err)
		}
		wantAsBefore(t, m, before)
	})
}

// A set holds a descriptor of its own beside that of the block node.
func TestNoDescriptorIsLeftWhileTheVMRuns(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver = VirtioSCSI
		m := start(t, idleSpec(t, spec))
		before := held(t, m)
		one, two := filled(t, 1), filled(t, 2)
		disk := layers("vmdk", open(t, one, os.O_RDONLY), open(t, two, os.O_RDONLY))
		for range 3 {
			if _, err := m.Attach(within(t), disk); err != nil {
				t.Fatal(err)
			}
			for set, n := range sets(t, m) {
				if n != 0 {
					t.Errorf("set %d has %d descriptors", set, n)
				}
			}
			now := held(t, m)
			for _, name := range []string{one, two, sealedName} {
				if len(now[name]) != 1 {
					t.Errorf("%s is open %d times", name, len(now[name]))
				}
			}
			if err := m.Detach(within(t), "vmdk"); err != nil {
				t.Error(err)
			}
			if now := held(t, m); fmt.Sprint(now) != fmt.Sprint(before) {
				t.Errorf("QEMU has open\n%v\nand before\n%v", now, before)
			}
			if left := sets(t, m); len(left) > 0 {
				t.Errorf("descriptor sets are left: %v", left)
			}
		}
	})
}

// The caller's descriptor may allow more than the disk does, and its flags are
// not touched.
func TestQEMUGetsNoMoreAccessThanTheDiskNeeds(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		for name, tc := range map[string]struct {
			readOnly, direct bool
			want             int
		}{
			"read-only":        {true, false, unix.O_RDONLY},
			"writable":         {false, false, unix.O_RDWR},
			"read-only direct": {true, true, unix.O_RDONLY | unix.O_DIRECT},
			"writable direct":  {false, true, unix.O_RDWR | unix.O_DIRECT},
		} {
			t.Run(name, func(t *testing.T) {
				spec := spec
				spec.Dir = filepath.Join(shortDir(t), "vm")
				spec.CacheDirect = tc.direct
				m := start(t, spec)
				path := image(t, "a", 1)
				f := open(t, path, os.O_RDWR)
				had, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				disk := hypervisor.Disk{ID: "a", Driver: hypervisor.DriverRaw, Files: []*os.File{f}, ReadOnly: tc.readOnly}
				if _, err := m.Attach(within(t), disk); err != nil {
					t.Fatal(err)
				}
				onePerFile(t, m, tc.want&unix.O_ACCMODE, path)
				for _, flags := range held(t, m)[path] {
					if flags&unix.O_DIRECT != tc.want&unix.O_DIRECT {
						t.Errorf("flags are %o", flags)
					}
				}
				if has, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || has != had {
					t.Errorf("the caller's flags were %o and are %o (%v)", had, has, err)
				}
			})
		}
	})
}

// The extents of a VMDK are opened past the page cache like any disk, and the
// descriptor, which lies in memory, is not.
func TestExtentsAreOpenedDirectly(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.CacheDirect = true
		m := start(t, spec)
		path := filled(t, 7)
		if _, err := m.Attach(within(t), layers("a", open(t, path, os.O_RDONLY))); err != nil {
			t.Fatal(err)
		}
		onePerFile(t, m, unix.O_RDONLY, path)
		for _, flags := range held(t, m)[path] {
			if flags&unix.O_DIRECT == 0 {
				t.Errorf("flags are %o", flags)
			}
		}
	})
}

// limitFiles lets QEMU open only so many files, until the function returned is
// called.
func limitFiles(t *testing.T, m *Machine, n int) (restore func()) {
	t.Helper()
	var had unix.Rlimit
	err := unix.Prlimit(m.Pid(), unix.RLIMIT_NOFILE, nil, &had)
	if err == nil {
		err = unix.Prlimit(m.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: had.Max}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(m.Pid(), unix.RLIMIT_NOFILE, &had, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestTooFewFilesAreNoticedBeforeAnyIsHandedOver(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.BlockDriver = VirtioSCSI
		m := start(t, spec)
		before := held(t, m)
		files := make([]*os.File, 100)
		for i := range files {
			files[i] = open(t, filled(t, byte(i)), os.O_RDONLY)
		}
		disk := layers("many", files...)
		disk.Descriptor = func([]string) ([]byte, error) { t.Error("it came as far as the descriptor"); return nil, nil }
		restore := limitFiles(t, m, openFiles(t, m)+150)
		_, err := m.Attach(within(t), disk)
		if !errors.Is(err, ErrFileLimit) || !strings.Contains(err.Error(), "LimitNOFILE") || !strings.Contains(err.Error(), `"many"`) {
			t.Errorf("error is %v", err)
		}
		m.mu.Lock()
		if m.lastSet != 0 {
			t.Errorf("%d sets were made", m.lastSet)
		}
		m.mu.Unlock()
		wantAsBefore(t, m, before)
		restore()
		disk.Descriptor = vmdkText
		if _, err := m.Attach(within(t), disk); err != nil {
			t.Errorf("with the limit raised: %v", err)
		}
	})
}

// Each step of an Attach fails once.
func TestAttachOfFilesThatFailsLeavesNothing(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		for _, driver := range []BlockDriver{VirtioBlk, VirtioSCSI} {
			t.Run(string(driver), func(t *testing.T) {
				spec := spec
				spec.BlockDriver, spec.Dir = driver, filepath.Join(shortDir(t), "vm")
				testAttachOfFilesThatFails(t, spec)
			})
		}
	})
}

func testAttachOfFilesThatFails(t *testing.T, spec Spec) {
	m := start(t, spec)
	occupy(t, m, "twin")
	before := held(t, m)
	path := filled(t, 1)
	good, forWriting := open(t, path, os.O_RDONLY), open(t, path, os.O_WRONLY)
	pathOnly, dir := open(t, path, unix.O_PATH), open(t, "/", os.O_RDONLY)
	pipe, pipeEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer pipeEnd.Close()
	closed := open(t, path, os.O_RDONLY)
	closed.Close()

	raw := func(f *os.File) hypervisor.Disk { return shared("a", f) }
	writable := raw(good)
	writable.ReadOnly = false
	twin := raw(good)
	twin.ID = "twin"
	text := func(change func(names []string) string) hypervisor.Disk {
		d := layers("a", good, good)
		d.Descriptor = func(names []string) ([]byte, error) { return []byte(change(names)), nil }
		return d
	}
	appended := func(line string) hypervisor.Disk {
		return text(func(names []string) string { b, _ := vmdkText(names); return string(b) + line })
	}
	callersOwn := errors.New("the caller cannot make it")
	refusing := layers("a", good)
	refusing.Descriptor = func([]string) ([]byte, error) { return nil, callersOwn }
	ctx, cancel := context.WithCancel(within(t))
	cancelling := layers("a", good)
	cancelling.Descriptor = func(names []string) ([]byte, error) { cancel(); return vmdkText(names) }
	restore := func() {}
	limiting := layers("a", good, good)
	limiting.Descriptor = func(names []string) ([]byte, error) {
		restore = limitFiles(t, m, 3) // it has more
		return vmdkText(names)
	}

	for name, tc := range map[string]struct {
		ctx  context.Context
		disk hypervisor.Disk
		want error // nil: any
	}{
		"not open for reading":       {nil, raw(forWriting), ErrFile},
		"open by its path only":      {nil, raw(pathOnly), ErrFile},
		"a directory":                {nil, raw(dir), ErrFile},
		"a pipe":                     {nil, raw(pipe), ErrFile},
		"a file that is closed":      {nil, raw(closed), nil},
		"read-only, but to write to": {nil, writable, ErrFile},
		"the second of two files":    {nil, layers("a", good, pipe), ErrFile},
		"the caller's descriptor":    {nil, refusing, callersOwn},
		"a path":                     {nil, appended("RW 1 FLAT \"/etc/hostname\" 0\n"), nil},
		"a path of a protocol":       {nil, appended("RW 1 FLAT \"nbd:localhost:1\" 0\n"), nil},
		"a set that is not its own":  {nil, appended("RW 1 FLAT \"/dev/fdset/1000\" 0\n"), nil},
		"a path without its end":     {nil, appended("RW 1 FLAT \"/etc/hostname"), nil},
		"a backing file":             {nil, appended("parentFileNameHint=\"/etc/hostname\"\n"), nil},
		"a backing file in a remark": {nil, appended("# parentFileNameHint=x\n"), nil},
		"more than QEMU reads":       {nil, appended(strings.Repeat("# much\n", 150_000)), nil},
		"add-fd is refused":          {nil, limiting, nil},
		"the context ends":           {ctx, cancelling, context.Canceled},
		"blockdev-add is refused":    {nil, text(func([]string) string { return "this is no descriptor" }), nil},
		"device_add is refused":      {nil, twin, nil},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := tc.ctx
			if ctx == nil {
				ctx = within(t)
			}
			_, err := m.Attach(ctx, tc.disk)
			restore()
			restore = func() {}
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", tc.disk.ID)) {
				t.Errorf("the error does not name the disk: %v", err)
			}
			wantAsBefore(t, m, before)
		})
	}
	t.Run("all of that and it still works", func(t *testing.T) {
		if _, err := m.Attach(within(t), layers("a", good)); err != nil {
			t.Fatal(err)
		}
		wantContents(t, m, "a", extentSize, 1)
	})
}

func TestRefusedBeforeAnyFileIsHandedOver(t *testing.T) {
	spec := stoppedSpec(t)
	spec.DiskSlots = 1
	m := start(t, spec)
	f := open(t, filled(t, 1), os.O_RDONLY)
	if _, err := m.Attach(within(t), shared("a", f)); err != nil {
		t.Fatal(err)
	}
	m.tasks.Wait()
	given := m.lastSet
	bare := layers("b", f)
	bare.Descriptor = nil
	more := shared("b", f)
	more.Files = append(more.Files, f)
	described := shared("b", f)
	described.Descriptor = vmdkText
	written := layers("b", f)
	written.ReadOnly = false
	for name, tc := range map[string]struct {
		disk hypervisor.Disk
		want error
	}{
		"no slot is left":              {shared("b", f), ErrNoSlot},
		"the ID is in use":             {shared("a", f), ErrDiskExists},
		"a vmdk without a descriptor":  {bare, nil},
		"a raw disk of two files":      {more, nil},
		"a raw disk with a descriptor": {described, nil},
		"a writable vmdk":              {written, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := m.Attach(within(t), tc.disk); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.lastSet != given || len(m.disks) != 1 {
				t.Errorf("%d sets were made, and %d disks are known", m.lastSet-given, len(m.disks))
			}
		})
	}
}
