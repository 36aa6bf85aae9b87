// Package template keeps virtual machines that were booted once and saved, for
// others to go on from: it names them, has them built, lends them and throws them
// away.
//
// A Store is a directory of the host, private to root, that any number of processes
// use at the same time:
//
//	<key>/state          what qemu.Save wrote, read-only
//	<key>/memory         likewise, if memory is for others to map
//	<key>/template.json  what it depends on, and how large the files are
//	<key>.failures       a byte for each VM that went on from it and did not answer
//	<key>.error          why it could not be built the last time
//	.building-<key>      one that is being built
//	lock                 held by the process that builds, or removes
//
// A template appears by one rename, whole, and never changes. Whoever has borrowed
// one holds its file open, and so loses nothing when it is removed. Methods may be
// called from any goroutine. The package starts no goroutine, and runs no VM but in
// what Build is given to call.
package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

var (
	// ErrNone is wrapped when there is no template to borrow.
	ErrNone = errors.New("no template")
	// ErrBusy is wrapped when another process builds a template.
	ErrBusy = errors.New("a template is being built")
	// ErrUnsafe is wrapped when others than root could have written into a store.
	ErrUnsafe = errors.New("templates are not safe")
	// ErrTooSoon is wrapped when a template could not be built a short while ago.
	ErrTooSoon = errors.New("the template could not be built a short while ago")
)

const (
	// maxFailures is after how many VMs that did not answer a template goes, unless
	// one that answered came in between.
	maxFailures = 3
	// tryAgain is how long a build that failed keeps others from trying.
	tryAgain = 10 * time.Minute
	// maxManifest bounds what is read of a template.json, and of a <key>.error.
	maxManifest = 1 << 20

	stateFile    = "state"
	memoryFile   = "memory"
	manifestFile = "template.json"
)

// Limits bound what a store keeps. What is used the longest ago goes first.
type Limits struct {
	Count int
	Bytes int64 // on the disk
}

// Store is a directory of templates. It is plain data.
type Store struct {
	Dir    string
	Limits Limits
}

// Manifest says what a template is.
type Manifest struct {
	Key     Key              `json:"key"`
	Built   time.Time        `json:"built"`
	Took    time.Duration    `json:"took_ns"`
	Bytes   int64            `json:"bytes"`        // of the state
	Memory  int64            `json:"memory_bytes"` // of the guest's memory, holes included
	Depends qemu.Description `json:"depends"`
}

// Loan is a template in use. The caller closes it.
type Loan struct {
	Key Key
	qemu.Saved

	store Store
}

// Borrow opens a template. An error that wraps ErrNone says that there is none, or
// none that is whole.
func (s Store) Borrow(key Key) (*Loan, error) {
	if err := key.check(); err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	manifest, saved, err := s.open(key)
	if err != nil {
		return nil, err
	}
	loan := &Loan{Key: key, Saved: saved, store: s}
	if err := whole(saved, manifest); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrNone, key, err), loan.Close(), s.Remove(key))
	}
	// When it was used; that it cannot be noted only lets it go earlier.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", saved.State.Fd()), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0)
	return loan, nil
}

// open opens the files of a template.
func (s Store) open(key Key) (m Manifest, saved qemu.Saved, err error) {
	// One directory, also if another one gets its name meanwhile.
	dir, err := os.OpenRoot(filepath.Join(s.Dir, string(key)))
	if err != nil {
		return m, saved, fmt.Errorf("%w: %w", ErrNone, err)
	}
	defer dir.Close()
	text, err := dir.ReadFile(manifestFile)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err == nil && m.Key != key {
		err = fmt.Errorf("it is that of %q", m.Key)
	}
	if err != nil {
		return m, saved, fmt.Errorf("%w: %s of %s: %w", ErrNone, manifestFile, key, err)
	}
	saved.State, err = dir.Open(stateFile)
	if err == nil {
		saved.Memory, err = dir.Open(memoryFile)
	}
	if err != nil {
		return m, qemu.Saved{}, errors.Join(fmt.Errorf("%w: %w", ErrNone, err), closeSaved(saved))
	}
	return m, saved, nil
}

func closeSaved(saved qemu.Saved) error {
	var errs []error
	for _, f := range []*os.File{saved.State, saved.Memory} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// whole holds files to what was written.
func whole(saved qemu.Saved, m Manifest) error {
	err := ofSize(saved.State, m.Bytes)
	if err == nil {
		err = ofSize(saved.Memory, m.Memory)
	}
	return err
}

func ofSize(f *os.File, bytes int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != bytes {
		return fmt.Errorf("%s: %s of %d bytes, and a file of %d was written", f.Name(), info.Mode().Type(), info.Size(), bytes)
	}
	return nil
}

// Close gives the template back.
func (l *Loan) Close() error { return closeSaved(l.Saved) }

// Worked says that a VM that went on from the template answered.
func (l *Loan) Worked() error {
	err := os.Remove(l.store.failures(l.Key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("template %s: %w", l.Key, err)
	}
	return nil
}

// Failed says that one did not. After some of them the template goes, and is built
// anew; failures is how many there were.
func (l *Loan) Failed() (failures int, err error) {
	// A byte each, appended, so that several can be noted at the same time.
	f, err := os.OpenFile(l.store.failures(l.Key), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("template %s: %w", l.Key, err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return 0, fmt.Errorf("template %s: %w", l.Key, err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("template %s: %w", l.Key, err)
	}
	if failures = int(info.Size()); failures < maxFailures {
		return failures, nil
	}
	return failures, l.store.Remove(l.Key)
}

func (s Store) failures(key Key) string { return filepath.Join(s.Dir, string(key)+".failures") }

func (s Store) failed(key Key) string { return filepath.Join(s.Dir, string(key)+".error") }

// check refuses a store into which others than root could have written: the memory
// of VMs lies in it.
func (s Store) check() error {
	var st unix.Stat_t
	err := unix.Lstat(s.Dir, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %s is not there", ErrNone, s.Dir)
	case err != nil:
		return &os.PathError{Op: "lstat", Path: s.Dir, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%w: %s must be a directory of the user %d with mode 0700, and has mode %#o and user %d: remove it",
			ErrUnsafe, s.Dir, os.Geteuid(), st.Mode&0o7777, st.Uid)
	}
	return nil
}

// make makes the directory, or checks it.
func (s Store) make() error {
	if err := os.MkdirAll(filepath.Dir(s.Dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return s.check()
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxManifest {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxManifest)
	}
	return os.ReadFile(path)
}

// lock takes the lock of the store, waiting for it or not. It goes with the file.
func (s Store) lock(wait bool) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.Dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is locked", ErrBusy, f.Name())
		}
		return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return f, nil
}
