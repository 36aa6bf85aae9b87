// Package turnstile lets only so many processes of a host through at a time. Whoever
// has come through has a place until it leaves, or dies.
//
// The places are files in a directory, and to have one is to have its lock (flock(2)):
// so nothing has to serve them, and nothing is left of who was killed. Whoever waits
// is woken by the kernel when a place becomes free (inotify(7)). Who waits longest is
// not first: what is waited for takes a second or two.
package turnstile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrFull is wrapped when all places were taken for as long as the caller would wait.
var ErrFull = errors.New("too many others are on their way")

// lookAgain is how long a wait relies on being woken. The kernel may tell of the end of
// a process before it has given up the process's locks.
const lookAgain = time.Second

// Turnstile is a directory, private to the user, with so many places. It is plain data.
type Turnstile struct {
	Dir    string
	Places int // below 1: all come through at once
}

// Place is one that is taken, until Leave.
type Place struct{ lock, bell *os.File }

// Enter waits for a place until ctx ends.
func (t Turnstile) Enter(ctx context.Context) (*Place, error) {
	if t.Places < 1 {
		return &Place{}, nil
	}
	place, err := t.enter(ctx)
	if err != nil {
		return nil, fmt.Errorf("one of the %d places of %s: %w", t.Places, t.Dir, err)
	}
	return place, nil
}

func (t Turnstile) enter(ctx context.Context) (*Place, error) {
	if err := os.MkdirAll(filepath.Dir(t.Dir), 0o711); err != nil {
		return nil, err
	}
	if err := os.Mkdir(t.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if place, err := t.try(); place != nil || err != nil {
		return place, err
	}
	freed, err := watch(t.Dir)
	if err != nil {
		return nil, err
	}
	defer freed.Close()
	stop := context.AfterFunc(ctx, func() { _ = freed.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for event := make([]byte, 4<<10); ; {
		// Once more first: one may have become free before the watch was there.
		if place, err := t.try(); place != nil || err != nil {
			return place, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrFull, context.Cause(ctx))
		}
		_ = freed.SetReadDeadline(time.Now().Add(lookAgain))
		if _, err := freed.Read(event); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
}

// try takes a place that is free, beginning with any of them. It returns none where there
// is none.
func (t Turnstile) try() (*Place, error) {
	first := rand.IntN(t.Places)
	for i := range t.Places {
		place, err := take(filepath.Join(t.Dir, strconv.Itoa((first+i)%t.Places)))
		if place != nil || err != nil {
			return place, err
		}
	}
	return nil, nil
}

// take takes the place of a file, unless it is taken. To try does not open it for
// writing, so that it wakes nobody.
func take(path string) (*Place, error) {
	lock, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	bell, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Place{lock, bell}, nil
}

// watch tells of files in dir that were open for writing and are closed.
func watch(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), "inotify "+dir)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE); err != nil {
		return nil, errors.Join(&os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}

// Leave gives the place to the next one. It is called once.
func (p *Place) Leave() error {
	if p.lock == nil {
		return nil
	}
	// The lock first: whoever is woken by the other must find it free.
	return errors.Join(p.lock.Close(), p.bell.Close())
}
