package merge

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

const (
	// suffix is that of an entry's name.
	suffix = ".fsmeta"

	// grace is how long an entry stays after its use, whatever the limit says:
	// by then a VM has it open, or the container has failed to start.
	grace = 10 * time.Minute

	// resolution is how exactly the time of use is kept, which saves a write
	// per start of a container.
	resolution = time.Minute
)

// errBusy is an entry whose lock the other side has.
var errBusy = errors.New("cache entry is in use")

// use marks the entry as used now. The time of its last use is its time of
// modification, as many filesystems are mounted without times of access. An
// entry that is being removed is errBusy, one that has been is os.ErrNotExist.
//
// Both sides hold a lock of the entry's own, so that an entry is either marked
// before the trimmer looks at its time, or removed before it is marked; and
// neither waits for the other.
func use(f *files.File) error {
	if err := flock(f.Fd(), unix.LOCK_SH); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(f.Fd(), &stat); err != nil {
		return err
	}
	if stat.Nlink == 0 {
		return os.ErrNotExist
	}
	if time.Since(time.Unix(stat.Mtim.Unix())).Abs() < resolution {
		return nil
	}
	// By its descriptor: the name may be another entry's by now. Who does not
	// own the cache cannot mark, and takes what is there.
	now := unix.NsecToTimeval(time.Now().UnixNano())
	err := unix.Futimes(f.Fd(), []unix.Timeval{now, now})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}

func flock(fd, how int) error {
	err := unix.Flock(fd, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errBusy
	}
	return err
}

// entry is a file of the cache.
type entry struct {
	path  string
	bytes int64
	used  time.Time
}

// trim removes the entries that were not used for the longest until those that
// are left have at most limit bytes together. Those used of late stay. Several
// processes may trim at once.
func trim(dir string, limit int64, now time.Time) error {
	entries, total, err := list(dir)
	if err != nil || total <= limit {
		return err
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.path, b.path))
	})
	for _, e := range entries {
		if total <= limit || e.used.After(now.Add(-grace)) {
			return nil
		}
		removed, err := remove(e)
		if err != nil {
			return err
		}
		if removed {
			total -= e.bytes
		}
	}
	return nil
}

// list has the entries, and those that a killed process left half renamed.
func list(dir string) (entries []entry, total int64, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		if !strings.Contains(name.Name(), suffix) {
			continue
		}
		info, err := name.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // another process was faster
		}
		if err != nil {
			return nil, 0, err
		}
		entries = append(entries, entry{filepath.Join(dir, name.Name()), info.Size(), info.ModTime()})
		total += info.Size()
	}
	return entries, total, nil
}

// remove removes the entry unless it has been used since it was listed, or is
// being used, and says whether it is gone.
func remove(e entry) (bool, error) {
	f, err := os.Open(e.path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	// Before the lock too, so that one just made under the name is never busy.
	if used, err := usedSince(f, e.used); used || err != nil {
		return false, err
	}
	switch err := flock(int(f.Fd()), unix.LOCK_EX); {
	case errors.Is(err, errBusy):
		return false, nil
	case err != nil:
		return false, err
	}
	if used, err := usedSince(f, e.used); used || err != nil {
		return false, err
	}
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return true, nil
}

func usedSince(f *os.File, then time.Time) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	return !info.ModTime().Equal(then), nil
}
