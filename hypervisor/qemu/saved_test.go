package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// TestSavedVMGoesOn saves one guest, and goes on from it twice at the same time.
func TestSavedVMGoesOn(t *testing.T) {
	spec := guestSpec(t)
	spec.MaxMemoryMiB, spec.CacheDir = 1024, t.TempDir()
	_, spec, err := Describe(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	from := saved(t, spec)

	var twins [2]*guest
	for i := range twins {
		own := spec
		own.Dir, own.From = filepath.Join(shortDir(t), "vm"), from
		m := start(t, own)
		disk := attach(t, m, "early", true) // while the guest stands still
		if err := m.Run(within(t)); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitReady(within(t)); err != nil {
			t.Fatal(err)
		}
		g := dial(t, m)
		g.wantDisk("early", disk, 1<<20, true)
		t.Logf("%+v", m.Timings())
		twins[i] = g
	}
	for _, file := range []string{"/proc/sys/kernel/random/uuid", "/proc/sys/kernel/random/boot_id"} {
		if a, b := twins[0].reads(file), twins[1].reads(file); a == b || a == "" {
			t.Errorf("%s of two guests: %q and %q", file, a, b)
		}
	}
	t.Run("becomes larger", func(t *testing.T) {
		if mib, err := twins[0].m.AddMemory(within(t), 512); err != nil || mib != 512 {
			t.Errorf("%d MiB, %v", mib, err)
		}
	})
	t.Run("loses a disk and gets another", func(t *testing.T) {
		m, g := twins[1].m, twins[1]
		if err := m.Detach(within(t), "early"); err != nil {
			t.Fatal(err)
		}
		g.wantDisk("late", attach(t, m, "late", true), 1<<20, true)
	})
}

func (g *guest) reads(file string) string {
	g.t.Helper()
	var answer struct{ Text string }
	g.ask(&answer, "read %s", file)
	return strings.TrimSpace(answer.Text)
}

// saved is a saved VM.
func saved(t *testing.T, spec Spec) Saved {
	t.Helper()
	dir := t.TempDir()
	state, memory := filepath.Join(dir, "state"), filepath.Join(dir, "memory")
	to := Saved{State: open(t, state, os.O_CREATE|os.O_WRONLY), Memory: open(t, memory, os.O_CREATE|os.O_RDWR)}
	spec.Dir = filepath.Join(shortDir(t), "vm")
	began := time.Now()
	if err := Save(within(t), spec, to); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", spec.Dir, err)
	}
	t.Logf("saved in %v", time.Since(began))
	return Saved{State: open(t, state, os.O_RDONLY), Memory: open(t, memory, os.O_RDONLY)}
}

// TestMemoryIsMappedByAllThatGoOn has two guests go on from memory that is mapped, each
// for itself. A host without the kernel's vsock cannot talk to them: that they live is
// seen by what they read of a disk. `make test-vhost` talks to one.
func TestMemoryIsMappedByAllThatGoOn(t *testing.T) {
	spec := guestSpec(t)
	spec.Vsock = vsock.Kernel
	_, spec, err := Describe(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	from := saved(t, spec)
	info, err := from.Memory.Stat()
	if err != nil || info.Size() != int64(spec.MemoryMiB)<<20 {
		t.Errorf("memory is %d bytes, %v", info.Size(), err)
	}
	before := sumOf(t, from.Memory)
	for range 2 {
		own := spec
		own.Dir, own.From, own.mute = filepath.Join(shortDir(t), "vm"), from, true
		m := start(t, own)
		attach(t, m, "early", true) // while the guest stands still
		if err := m.Run(within(t)); err != nil {
			t.Fatal(err)
		}
		waitUntilRead(t, m, "early")
		t.Logf("%+v, %d KiB of memory of its own", m.Timings(), ownKiB(t, m, from.Memory.Name()))
		if kib := ownKiB(t, m, from.Memory.Name()); kib == 0 || kib > 64<<10 {
			t.Errorf("%d KiB are its own", kib)
		}
	}
	if sumOf(t, from.Memory) != before {
		t.Error("one that went on has written to the memory of the template")
	}

	own := spec
	own.Dir, own.From, own.mute = filepath.Join(shortDir(t), "vm"), Saved{State: from.State}, true
	if m, err := Start(within(t), own); !errors.Is(err, ErrNotSavable) {
		t.Errorf("without its memory: %v, %v", m, err)
	}
}

// waitUntilRead returns when the guest has read from a disk, which it does by itself,
// for its partitions.
func waitUntilRead(t *testing.T, m *Machine, id string) {
	t.Helper()
	ctx := within(t)
	often := time.NewTicker(20 * time.Millisecond)
	defer often.Stop()
	for {
		var stats []struct {
			QDev  string `json:"qdev"`
			Stats struct {
				Read int64 `json:"rd_operations"`
			} `json:"stats"`
		}
		do(t, m, "query-blockstats", nil, &stats)
		for _, s := range stats {
			if strings.Contains(s.QDev, id) && s.Stats.Read > 0 {
				return
			}
		}
		select {
		case <-often.C:
		case <-ctx.Done():
			t.Fatalf("the guest has not read from its disk: %+v%s", stats, m.Tail())
		}
	}
}

func sumOf(t *testing.T, f *os.File) [sha256.Size]byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// ownKiB is how much of a file that QEMU has mapped it has written to.
func ownKiB(t *testing.T, m *Machine, path string) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", m.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if strings.Contains(fields[0], "-") { // the head of a mapping
			inside = len(fields) > 5 && fields[5] == path
		}
		if n := 0; inside && fields[0] == "Anonymous:" {
			if n, err = strconv.Atoi(fields[1]); err != nil {
				t.Fatal(err)
			}
			kib += n
		}
	}
	return kib
}

// What is no saved VM, or no whole one, is an error at once, with QEMU's reason, and
// leaves nothing.
func TestWhatIsNotSavedDoesNotGoOn(t *testing.T) {
	good := guestSpec(t)
	_, good, err := Describe(within(t), good)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":   nil,
		"zeros":   make([]byte, 1<<20),
		"foreign": bytes.Repeat([]byte("erofsvm "), 1<<17),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, content, 0o400); err != nil {
				t.Fatal(err)
			}
			spec := good
			spec.Dir, spec.From = filepath.Join(shortDir(t), "vm"), Saved{State: open(t, path, os.O_RDONLY), Memory: sparse(t, int64(spec.MemoryMiB)<<20, nil)}
			m, err := Start(within(t), spec)
			if err == nil {
				_ = m.Kill(within(t))
				t.Fatal("it goes on")
			}
			if !strings.Contains(err.Error(), "migrate-incoming failed: ") {
				t.Errorf("%v", err)
			}
			if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", spec.Dir, err)
			}
		})
	}
}

// A guest that cannot be a template is not waited for longer than the caller wants,
// and the error says what it lacks.
func TestSaveSaysWhatIsMissing(t *testing.T) {
	spec := guestSpec(t)
	spec.KernelParams = []string{"testguest=exit"}
	to := Saved{State: sparse(t, 0, nil), Memory: sparse(t, 0, nil)}
	if err := Save(within(t), spec, to); !errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), "asked to exit") {
		t.Errorf("%v", err)
	}
}

func TestDescriptionIsAllThatMatters(t *testing.T) {
	spec := guestSpec(t)
	spec.CacheDir = t.TempDir()
	first, chosen, err := Describe(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(chosen.Machine, "pc-q35-") || chosen.Vsock == vsock.Auto || first.QEMU == "" || len(first.CPU) == 0 {
		t.Errorf("%+v, %+v", first, chosen)
	}
	var names []string
	for _, f := range first.Files {
		names = append(names, filepath.Base(f.Path))
	}
	if all := strings.Join(names, " "); !strings.Contains(all, "bios-256k.bin") || !strings.Contains(all, "pvh.bin") {
		t.Errorf("firmware: %s", all)
	}
	describe := func(change func(*Spec)) Description {
		s := spec
		change(&s)
		d, _, err := Describe(within(t), s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	same := describe(func(s *Spec) { s.Dir, s.AIO, s.Machine = "/run/other", AIOURing, chosen.Machine })
	if text(t, same) != text(t, first) {
		t.Errorf("what does not matter is in it:\n%s\n%s", text(t, first), text(t, same))
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, []byte("other"), 0o400); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"memory":           func(s *Spec) { s.MemoryMiB = 512 },
		"most memory":      func(s *Spec) { s.MaxMemoryMiB = 4096 },
		"processors":       func(s *Spec) { s.VCPUs = 2 },
		"slots":            func(s *Spec) { s.DiskSlots = 128 },
		"interfaces":       func(s *Spec) { s.NICSlots = 25 },
		"block driver":     func(s *Spec) { s.BlockDriver = VirtioSCSI },
		"kernel parameter": func(s *Spec) { s.KernelParams = []string{"nokaslr"} },
		"initrd":           func(s *Spec) { s.Initrd = initrd },
		"reclaimed memory": func(s *Spec) { s.Reclaim = !s.Reclaim },
		"vsock":            func(s *Spec) { s.Vsock = vsock.Kernel },
	} {
		if text(t, describe(change)) == text(t, first) {
			t.Errorf("%s: not in the description", name)
		}
	}
	// The same name, another file.
	before := text(t, describe(func(s *Spec) { s.Initrd = initrd }))
	if err := os.Rename(initrd, initrd+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(initrd, []byte("third"), 0o400); err != nil {
		t.Fatal(err)
	}
	if text(t, describe(func(s *Spec) { s.Initrd = initrd })) == before {
		t.Error("another file under the same name is not noticed")
	}
}

func TestTooOldQEMUIsSaid(t *testing.T) {
	spec := guestSpec(t)
	spec.Binary = fakeProgram(t, program{Version: "8.2.0", Release: release{8, 2}}, &spec)
	if _, _, err := Describe(within(t), spec); !errors.Is(err, ErrNotSavable) || !strings.Contains(err.Error(), "8.2") {
		t.Errorf("%v", err)
	}
	eachQEMU(t, func(t *testing.T, spec Spec) {
		spec.stopped = false
		_, _, err := Describe(within(t), spec)
		if old := spec.Binary == testguest.Find(t).OldestQEMU; old != errors.Is(err, ErrNotSavable) || !old && err != nil {
			t.Errorf("%v", err)
		}
	})
}

// fakeProgram is a file of which the cache says that it is a QEMU.
func fakeProgram(t *testing.T, p program, spec *Spec) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	spec.CacheDir = t.TempDir()
	key, err := hostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := store(spec.CacheDir, "program.json", key, p); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLineIsSeenHoweverItComes(t *testing.T) {
	for _, tc := range []struct {
		writes []string
		seen   bool
	}{
		{[]string{"this is it\n"}, true},
		{[]string{"boot\r\nthis", " is", " it\r", "\n"}, true},
		{[]string{"this is it"}, false},
		{[]string{"this is it not\n", "and this is it\n"}, false},
		{[]string{strings.Repeat("x", 1<<20), "this is it\n"}, false},
		{[]string{strings.Repeat("x", 1<<20) + "\nthis is it\nthis is it\n"}, true},
	} {
		l := newLineSeen("this is it")
		for _, w := range tc.writes {
			if n, err := l.Write([]byte(w)); n != len(w) || err != nil {
				t.Fatal(n, err)
			}
		}
		seen := false
		select {
		case <-l.seen:
			seen = true
		default:
		}
		if seen != tc.seen || len(l.last) > 20 {
			t.Errorf("%.40q: %v, keeps %d bytes", tc.writes, seen, len(l.last))
		}
	}
}

func text(t *testing.T, d Description) string {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
