package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
)

func TestConfiguredAcceleratorIsNotProbed(t *testing.T) {
	for _, accel := range []Accelerator{AcceleratorKVM, AcceleratorTCG} {
		choice, err := chooseAccelerator(t.Context(), Spec{Accelerator: accel, Binary: "/no/such/file"})
		if err != nil || choice.Accelerator != accel {
			t.Errorf("%s becomes %+v, %v", accel, choice, err)
		}
	}
}

// Whatever this host is, the answer is one that Start can use, it says why, and it is
// the same from the cache.
func TestAcceleratorIsProbedOnceWithAVM(t *testing.T) {
	tools := testguest.Find(t)
	spec := Spec{
		Accelerator: AcceleratorAuto, Binary: tools.QEMU, Kernel: tools.Kernel,
		CacheDir: filepath.Join(t.TempDir(), "cache"),
	}.withDefaults()
	choice, err := chooseAccelerator(within(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", choice.Accelerator, choice.Reason)
	if choice.Accelerator != AcceleratorKVM && choice.Accelerator != AcceleratorTCG || choice.Reason == "" {
		t.Errorf("choice is %+v", choice)
	}
	kvm, openErr := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if openErr != nil {
		if choice.Accelerator != AcceleratorTCG || !strings.Contains(choice.Reason, kvmDevice) {
			t.Errorf("without %s the choice is %+v", kvmDevice, choice)
		}
		return
	}
	kvm.Close()
	// A context that has ended lets no probe run: this is the cached answer.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if again, err := chooseAccelerator(ended, spec); err != nil || again != choice {
		t.Errorf("the second time %+v, %v", again, err)
	}
	spec.CacheDir = ""
	if _, err := chooseAccelerator(ended, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("without a cache: %v", err)
	}
}

func TestURingIsProbedAndHasAFallback(t *testing.T) {
	eachQEMU(t, func(t *testing.T, spec Spec) {
		dir := t.TempDir()
		spec = Spec{AIO: AIOURing, Binary: spec.Binary, Dir: dir, CacheDir: filepath.Join(dir, "cache")}.withDefaults()
		aio, err := chooseAIO(within(t), spec)
		if err != nil || aio != AIOURing && aio != AIOThreads {
			t.Errorf("aio is %q, %v", aio, err)
		}
		t.Logf("aio is %s", aio)
		if _, err := os.Stat(filepath.Join(dir, probeFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left (%v)", probeFile, err)
		}
		broken := spec
		broken.Binary = notExecutableFormat(t)
		if aio, err := chooseAIO(within(t), broken); err != nil || aio != AIOThreads {
			t.Errorf("with a QEMU that does not start, aio is %q, %v", aio, err)
		}
	})
	if aio, err := chooseAIO(t.Context(), Spec{}.withDefaults()); err != nil || aio != AIOThreads {
		t.Errorf("the default is %q, %v", aio, err)
	}
}

func TestCacheAnswersOnlyForItsKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "cache")
	file := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(file, []byte("1"), 0o755); err != nil {
		t.Fatal(err)
	}
	key, err := hostKey(file)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	if cached(dir, "x.json", key, &got) {
		t.Error("an empty cache answers")
	}
	for _, want := range []string{"first", "second"} {
		if err := store(dir, "x.json", key, want); err != nil {
			t.Fatal(err)
		}
		if !cached(dir, "x.json", key, &got) || got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory is %v, %v", fi.Mode(), err)
	}
	if err := os.WriteFile(file, []byte("12"), 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := hostKey(file)
	if err != nil || other == key || cached(dir, "x.json", other, &got) {
		t.Errorf("another binary has the key %q, %v", other, err)
	}
	for _, bad := range []string{"", "{", `{"key": 5}`, `{"key": "` + key + `", "answer": 5}`, strings.Repeat(" ", maxCacheFile) + "{}"} {
		if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if cached(dir, "x.json", key, &got) {
			t.Errorf("%.20q answers %q", bad, got)
		}
	}
	if _, err := hostKey("/no/such/file"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}
