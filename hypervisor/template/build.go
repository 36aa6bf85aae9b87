package template

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

// vmDir is where the VM has its files that is saved.
const vmDir = "vm"

// building begins the name of a template that is not whole.
const building = ".building-"

// Save writes a VM to files. dir is not there yet, and for the VM to have its files in;
// it must be gone when save returns.
type Save func(ctx context.Context, dir string, to qemu.Saved) error

// Build makes a template, unless it is there. save is called at most once, while no
// other process builds. ErrBusy and ErrTooSoon say that
// it was not called. What is over the store's limits goes afterwards.
func (s Store) Build(ctx context.Context, d qemu.Description, save Save) (err error) {
	key, err := KeyOf(d)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("build template %s: %w", key, err)
		}
	}()
	if err := s.make(); err != nil {
		return err
	}
	lock, err := s.lock(false)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, saved, err := s.open(key); err == nil {
		return closeSaved(saved)
	}
	if err := s.mayTry(key); err != nil {
		return err
	}
	// One of this key that is there now is not whole.
	if err := s.sweep(); err != nil {
		return err
	}
	if err := s.build(ctx, key, d, save); err != nil {
		return errors.Join(err, s.noteError(key, err), s.sweep())
	}
	return errors.Join(removeAll(s.failed(key), s.failures(key)), s.evict(key))
}

// mayTry holds back a build that failed a short while ago.
func (s Store) mayTry(key Key) error {
	info, err := os.Lstat(s.failed(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if age := time.Since(info.ModTime()); age >= 0 && age < tryAgain {
		return fmt.Errorf("%w: %v ago; %s says why, and is to be removed to try at once", ErrTooSoon, age.Round(time.Second), s.failed(key))
	}
	return nil
}

// build makes one under another name, and then gives it its own.
func (s Store) build(ctx context.Context, key Key, d qemu.Description, save Save) error {
	began := time.Now()
	tmp := filepath.Join(s.Dir, building+string(key))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	m := Manifest{Key: key, Depends: d, Built: began.UTC()}
	if err := write(ctx, tmp, save, &m); err != nil {
		return err
	}
	m.Took = time.Since(began)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(tmp, manifestFile), append(text, '\n')); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o500); err != nil {
		return err
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(s.Dir, string(key))); err != nil {
		return err
	}
	return syncDir(s.Dir)
}

// write has the VM saved, and notes the sizes of its files.
func write(ctx context.Context, dir string, save Save, m *Manifest) (err error) {
	var to qemu.Saved
	defer func() { err = errors.Join(err, closeSaved(to)) }()
	// Others than root may not: whoever runs QEMU opens that of memory once more.
	if to.State, err = os.OpenFile(filepath.Join(dir, stateFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if to.Memory, err = os.OpenFile(filepath.Join(dir, memoryFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if err := save(ctx, filepath.Join(dir, vmDir), to); err != nil {
		return err
	}
	if m.Bytes, err = finish(to.State); err == nil {
		m.Memory, err = finish(to.Memory)
	}
	return err
}

// finish has a file on the disk, for nobody to write to, and returns its size.
func finish(f *os.File) (int64, error) {
	if err := errors.Join(f.Chmod(0o400), f.Sync()); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() == 0 {
		return 0, fmt.Errorf("%s: nothing was written", f.Name())
	}
	return info.Size(), nil
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// noteError keeps why a build failed, for people and for mayTry.
func (s Store) noteError(key Key, why error) error {
	text := why.Error()
	return os.WriteFile(s.failed(key), []byte(text[:min(len(text), maxManifest)]+"\n"), 0o600)
}

// sweep removes what builds left that were killed, and templates that are not whole.
// The caller has the lock.
func (s Store) sweep() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), building) {
			errs = append(errs, removeTree(filepath.Join(s.Dir, e.Name())))
		}
		if key := Key(e.Name()); key.check() == nil {
			if _, saved, err := s.open(key); err != nil {
				errs = append(errs, s.remove(key))
			} else {
				errs = append(errs, closeSaved(saved))
			}
		}
	}
	return errors.Join(errs...)
}

// evict removes what is over the limits, but not the one that was built just now.
func (s Store) evict(latest Key) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	kept, bytes := 1, int64(0)
	for _, t := range all {
		if t.Key == latest {
			bytes = t.Disk
		}
	}
	var errs []error
	for _, t := range all { // the latest used first
		switch {
		case t.Key == latest || t.Error != "":
		case kept+1 > s.Limits.Count || bytes+t.Disk > s.Limits.Bytes:
			errs = append(errs, s.remove(t.Key))
		default:
			kept++
			bytes += t.Disk
		}
	}
	return errors.Join(errs...)
}

// Info is what can be said of a template, or of one that could not be built.
type Info struct {
	Manifest
	Disk     int64 // bytes that it takes
	Used     time.Time
	Failures int
	Error    string // of the last build, if there is no template
}

// List returns what there is, the latest used first. A store that is not there is
// empty.
func (s Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, e := range entries {
		name, failed := strings.CutSuffix(e.Name(), ".error")
		key := Key(name)
		if key.check() != nil {
			continue
		}
		if failed {
			text, err := readSmall(s.failed(key))
			if err == nil {
				all = append(all, Info{Manifest: Manifest{Key: key}, Error: strings.TrimSpace(string(text))})
			}
			continue
		}
		if info, err := s.info(key); err == nil { // else it went just now, or is none
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Key, b.Key)) })
	return all, nil
}

func (s Store) info(key Key) (Info, error) {
	m, saved, err := s.open(key)
	if err != nil {
		return Info{}, err
	}
	defer closeSaved(saved)
	var state, memory unix.Stat_t
	if err := unix.Fstat(int(saved.State.Fd()), &state); err != nil {
		return Info{}, os.NewSyscallError("fstat", err)
	}
	if err := unix.Fstat(int(saved.Memory.Fd()), &memory); err != nil {
		return Info{}, os.NewSyscallError("fstat", err)
	}
	info := Info{Manifest: m, Disk: (state.Blocks + memory.Blocks) * 512, Used: time.Unix(state.Mtim.Unix())}
	if f, err := os.Lstat(s.failures(key)); err == nil {
		info.Failures = int(f.Size())
	}
	return info, nil
}

// Remove removes a template; one that is not there is no error. VMs that went on
// from it are not touched.
func (s Store) Remove(key Key) error {
	if err := key.check(); err != nil {
		return err
	}
	return s.remove(key)
}

func (s Store) remove(key Key) error {
	// First its name, so that nobody finds half of it. Two may remove it at once.
	gone := filepath.Join(s.Dir, fmt.Sprintf("%s%s-gone-%d-%d", building, key, os.Getpid(), time.Now().UnixNano()))
	err := os.Rename(filepath.Join(s.Dir, string(key)), gone)
	if err == nil {
		err = removeTree(gone)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, removeAll(s.failures(key), s.failed(key)))
}

// removeTree removes a template, whose directory cannot be written to, of which only
// files of ours are removed, so that a wrong path costs nobody a tree.
func removeTree(dir string) error {
	if err := os.Chmod(dir, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeAll(filepath.Join(dir, stateFile), filepath.Join(dir, memoryFile), filepath.Join(dir, manifestFile), filepath.Join(dir, vmDir), dir)
}

// removeAll removes files, or empty directories, that need not be there.
func removeAll(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
