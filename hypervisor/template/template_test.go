package template

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

var update = flag.Bool("update", false, "write the golden file anew")

// described is a description that differs with n.
func described(n int) qemu.Description {
	return qemu.Description{
		Scheme: "ignore-shared 2", Kernel: "6.12.0", CPU: map[string]string{"model name": "A", "flags": "fpu vme", "microcode": "0x1"},
		QEMU:      "10.0.2 (Debian)",
		Files:     []qemu.FileIdentity{{Path: "/usr/bin/qemu-system-x86_64", Device: 1, Inode: 2, Size: 3, Changed: "4.000000005", Written: "6.000000007"}},
		Arguments: []string{"-machine", "pc-q35-10.0", "-m", fmt.Sprint(n)},
		Vsock:     "vhost-user",
	}
}

func keyOf(t *testing.T, n int) Key {
	t.Helper()
	key, err := KeyOf(described(n))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// The key and its text are golden: a change makes every template on every host a
// stranger, which is right if what VMs depend on has changed, and else a waste.
func TestKeyIsGolden(t *testing.T) {
	text, err := json.MarshalIndent(described(512), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got := string(text) + "\n" + string(keyOf(t, 512)) + "\n"
	const path = "testdata/key.golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; look at it, then run the test with -update:\n%s", path, got)
	}
}

// TestEveryFieldIsInTheKey changes each field of a description, those of tomorrow too.
func TestEveryFieldIsInTheKey(t *testing.T) {
	base := described(512)
	key, _ := KeyOf(base)
	for i := range reflect.TypeFor[qemu.Description]().NumField() {
		changed := base
		field := reflect.ValueOf(&changed).Elem().Field(i)
		field.SetZero()
		if other, err := KeyOf(changed); err != nil || other == key {
			t.Errorf("%s is not in the key: %v", reflect.TypeFor[qemu.Description]().Field(i).Name, err)
		}
	}
	for i := range reflect.TypeFor[qemu.FileIdentity]().NumField() {
		changed := base
		changed.Files = append([]qemu.FileIdentity{}, base.Files...)
		reflect.ValueOf(&changed.Files[0]).Elem().Field(i).SetZero()
		if other, err := KeyOf(changed); err != nil || other == key {
			t.Errorf("%s of a file is not in the key: %v", reflect.TypeFor[qemu.FileIdentity]().Field(i).Name, err)
		}
	}
}

func newStore(t *testing.T) Store {
	t.Helper()
	return Store{Dir: filepath.Join(t.TempDir(), "cache", "templates"), Limits: Limits{Count: 3, Bytes: 1 << 30}}
}

// saves is what writes a state of so many bytes.
// memorySize is that of the guests, in bytes.
const memorySize = 1 << 20

func saves(text string) Save {
	return func(_ context.Context, _ string, to qemu.Saved) error {
		_, err := to.State.WriteString(text)
		return errors.Join(err, to.Memory.Truncate(memorySize))
	}
}

func build(t *testing.T, s Store, n int) Key {
	t.Helper()
	if err := s.Build(t.Context(), described(n), saves(fmt.Sprintf("state %d", n))); err != nil {
		t.Fatal(err)
	}
	return keyOf(t, n)
}

func borrow(t *testing.T, s Store, key Key) *Loan {
	t.Helper()
	loan, err := s.Borrow(key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { loan.Close() })
	return loan
}

func wantNone(t *testing.T, s Store, key Key, why string) {
	t.Helper()
	loan, err := s.Borrow(key)
	if err == nil {
		loan.Close()
	}
	if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), why) {
		t.Errorf("%v, want none because of %q", err, why)
	}
}

func content(t *testing.T, l *Loan) string {
	t.Helper()
	buf := make([]byte, 100)
	n, err := l.State.ReadAt(buf, 0)
	if n == 0 {
		t.Error(err)
	}
	return string(buf[:n])
}

// names are those of a store, without its lock.
func names(t *testing.T, s Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.Name() != "lock" {
			all = append(all, e.Name())
		}
	}
	return all
}

func TestWhatWasBuiltIsLent(t *testing.T) {
	s := newStore(t)
	key := keyOf(t, 1)
	wantNone(t, s, key, "is not there")
	build(t, s, 1)
	loan := borrow(t, s, key)
	if got := content(t, loan); got != "state 1" {
		t.Errorf("%q", got)
	}
	wantNone(t, s, keyOf(t, 2), "")
	if _, err := s.Borrow("../" + key); err == nil {
		t.Error("a path is a key")
	}
	for path, mode := range map[string]os.FileMode{"": 0o500, stateFile: 0o400, manifestFile: 0o400} {
		if info, err := os.Stat(filepath.Join(s.Dir, string(key), path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	// It can be removed while it is in use, more than once.
	for range 2 {
		if err := s.Remove(key); err != nil {
			t.Error(err)
		}
	}
	if got := content(t, loan); got != "state 1" {
		t.Errorf("%q", got)
	}
	if left := names(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestMemoryIsAFileOfItsOwn(t *testing.T) {
	s := newStore(t)
	key := build(t, s, 1)
	loan := borrow(t, s, key)
	if info, err := loan.Memory.Stat(); err != nil || info.Size() != memorySize || info.Mode().Perm() != 0o400 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := loan.Memory.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if err := s.Remove(key); err != nil {
		t.Error(err)
	}
	if left := names(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestMemoryThatIsNotWholeIsNotLent(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"cut":  func(dir string) error { return os.Truncate(filepath.Join(dir, memoryFile), 4096) },
		"gone": func(dir string) error { return os.Remove(filepath.Join(dir, memoryFile)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			key := build(t, s, 1)
			if err := errors.Join(os.Chmod(filepath.Join(s.Dir, string(key)), 0o700), spoil(filepath.Join(s.Dir, string(key)))); err != nil {
				t.Fatal(err)
			}
			wantNone(t, s, key, "")
			borrow(t, s, build(t, s, 1))
		})
	}
}

func TestOneBuildsAndAllUse(t *testing.T) {
	s := newStore(t)
	var built atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			err := s.Build(t.Context(), described(1), func(ctx context.Context, dir string, to qemu.Saved) error {
				built.Add(1)
				return saves("state 1")(ctx, dir, to)
			})
			if err != nil && !errors.Is(err, ErrBusy) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if built.Load() != 1 {
		t.Errorf("built %d times", built.Load())
	}
	for range 16 {
		all.Go(func() { borrow(t, s, keyOf(t, 1)) })
	}
	all.Wait()
}

func TestOneBuildsAtATime(t *testing.T) {
	s := newStore(t)
	err := s.Build(t.Context(), described(1), func(ctx context.Context, dir string, to qemu.Saved) error {
		if err := s.Build(ctx, described(2), saves("state 2")); !errors.Is(err, ErrBusy) {
			t.Errorf("%v", err)
		}
		wantNone(t, s, keyOf(t, 1), "") // not before it is whole
		return saves("state 1")(ctx, dir, to)
	})
	if err != nil {
		t.Error(err)
	}
	build(t, s, 2)
}

func TestBuildThatFailsLeavesItsReason(t *testing.T) {
	s := newStore(t)
	broken := errors.New("the guest's kernel panicked")
	fail := func(context.Context, string, qemu.Saved) error { return broken }
	if err := s.Build(t.Context(), described(1), fail); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	wantNone(t, s, keyOf(t, 1), "")
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Error != broken.Error() {
		t.Errorf("%+v, %v", list, err)
	}
	if left := names(t, s); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	// Not again at once, and then it is forgotten.
	if err := s.Build(t.Context(), described(1), saves("x")); !errors.Is(err, ErrTooSoon) {
		t.Errorf("%v", err)
	}
	long := time.Now().Add(-tryAgain)
	if err := os.Chtimes(s.failed(keyOf(t, 1)), long, long); err != nil {
		t.Fatal(err)
	}
	build(t, s, 1)
	if left := names(t, s); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestWhatAKilledBuildLeftGoes(t *testing.T) {
	s := newStore(t)
	build(t, s, 1)
	half := filepath.Join(s.Dir, building+string(keyOf(t, 2)))
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, stateFile), []byte("half"), 0o400); err != nil {
		t.Fatal(err)
	}
	torn := build(t, s, 3)
	replace(t, filepath.Join(s.Dir, string(torn)), manifestFile, "{")
	build(t, s, 2)
	if left := names(t, s); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

func TestTheLongestUnusedGoes(t *testing.T) {
	s := newStore(t)
	for n := range 3 {
		build(t, s, n)
		used := time.Now().Add(time.Duration(n-10) * time.Minute)
		if err := os.Chtimes(filepath.Join(s.Dir, string(keyOf(t, n)), stateFile), used, used); err != nil {
			t.Fatal(err)
		}
	}
	borrow(t, s, keyOf(t, 0)) // used now
	build(t, s, 3)
	wantNone(t, s, keyOf(t, 1), "")
	for _, n := range []int{0, 2, 3} {
		borrow(t, s, keyOf(t, n))
	}
	s.Limits.Bytes = 1 // what is built is kept, whatever it takes
	build(t, s, 4)
	if left := names(t, s); len(left) != 1 || left[0] != string(keyOf(t, 4)) {
		t.Errorf("left: %v", left)
	}
}

func TestTemplateThatFailsGoes(t *testing.T) {
	s := newStore(t)
	key := build(t, s, 1)
	fails := func(want int) {
		t.Helper()
		if n, err := borrow(t, s, key).Failed(); n != want || err != nil {
			t.Errorf("%d failures, want %d, %v", n, want, err)
		}
	}
	fails(1)
	fails(2)
	if list, err := s.List(); err != nil || len(list) != 1 || list[0].Failures != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	// One that works in between, and the count begins anew.
	if err := errors.Join(borrow(t, s, key).Worked(), borrow(t, s, key).Worked()); err != nil {
		t.Error(err)
	}
	fails(1)
	fails(2)
	fails(3)
	wantNone(t, s, key, "")
	if left := names(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	build(t, s, 1)
	fails(1)
}

func TestWhatIsNotWholeIsNotLent(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"state cut": func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, stateFile), 3); err != nil {
				t.Fatal(err)
			}
		},
		"state gone":    func(t *testing.T, dir string) { replace(t, dir, stateFile, "") },
		"manifest gone": func(t *testing.T, dir string) { replace(t, dir, manifestFile, "") },
		"manifest torn": func(t *testing.T, dir string) { replace(t, dir, manifestFile, `{"key": "`) },
		"manifest of another": func(t *testing.T, dir string) {
			replace(t, dir, manifestFile, `{"key": "`+string(keyOf(t, 2))+`", "bytes": 7}`)
		},
		"state is a directory": func(t *testing.T, dir string) {
			replace(t, dir, stateFile, "")
			if err := os.Mkdir(filepath.Join(dir, stateFile), 0o700); err != nil {
				t.Fatal(err)
			}
		},
		"state is a link out": func(t *testing.T, dir string) {
			replace(t, dir, stateFile, "")
			if err := os.Symlink("/etc/passwd", filepath.Join(dir, stateFile)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			key := build(t, s, 1)
			dir := filepath.Join(s.Dir, string(key))
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			spoil(t, dir)
			wantNone(t, s, key, "")
			if err := os.RemoveAll(filepath.Join(dir, stateFile)); err != nil { // a directory is not ours to remove
				t.Fatal(err)
			}
			build(t, s, 1)
			borrow(t, s, key)
		})
	}
}

// replace gives a file of a template another content, or removes it.
func replace(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if text == "" {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestStoreOfOthersIsRefused(t *testing.T) {
	s := newStore(t)
	key := build(t, s, 1)
	if err := os.Chmod(s.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Borrow(key); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "0700") {
		t.Errorf("%v", err)
	}
	if err := s.Build(t.Context(), described(2), saves("x")); !errors.Is(err, ErrUnsafe) {
		t.Errorf("%v", err)
	}
	other := Store{Dir: filepath.Join(t.TempDir(), "link")}
	if err := os.Symlink(s.Dir, other.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Borrow(key); !errors.Is(err, ErrUnsafe) {
		t.Errorf("%v", err)
	}
}

func TestEmptyStoreIsNoError(t *testing.T) {
	if list, err := newStore(t).List(); len(list) > 0 || err != nil {
		t.Errorf("%v, %v", list, err)
	}
}
