package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
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
	state := saved(t, spec)

	var twins [2]*guest
	for i := range twins {
		own := spec
		own.Dir, own.From = filepath.Join(shortDir(t), "vm"), state
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

// saved is a file with a saved VM.
func saved(t *testing.T, spec Spec) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	spec.Dir = filepath.Join(shortDir(t), "vm")
	began := time.Now()
	if err := Save(within(t), spec, out); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", spec.Dir, err)
	}
	t.Logf("saved in %v", time.Since(began))
	return open(t, path, os.O_RDONLY)
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
			spec.Dir, spec.From = filepath.Join(shortDir(t), "vm"), open(t, path, os.O_RDONLY)
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
	out, err := os.Create(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := Save(within(t), spec, out); !errors.Is(err, hypervisor.ErrGone) || !strings.Contains(err.Error(), "asked to exit") {
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
