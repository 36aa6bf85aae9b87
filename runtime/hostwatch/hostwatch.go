// Package hostwatch says when directories of the host have changed.
//
// A Watcher has one inotify instance, of which the kernel gives a user few
// (fs.inotify.max_user_instances), for any number of directories, and calls those
// who watch them from the one goroutine that is in Run. It reads no file and never
// polls. What has changed it does not say: several changes in a short time are one,
// and some that do not matter are told as well.
package hostwatch

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long changes are gathered: whoever replaces the content of a
	// directory makes several.
	settle = 100 * time.Millisecond
	// A callback that fails is called again after firstRetry, and after twice as
	// long each time, maxRetries times. Then only a change helps.
	firstRetry = time.Second
	maxRetries = 6
)

// Watcher watches directories. Add and Watch.Close may be called from any goroutine.
type Watcher struct {
	fs   *fsnotify.Watcher
	warn func(dir string, err error)
	wake chan struct{}

	mu    sync.Mutex
	byDir map[string][]*Watch
}

// Watch is one directory that somebody watches.
type Watch struct {
	watcher *Watcher
	dir     string
	changed func(context.Context) error
	ended   context.Context
	end     context.CancelFunc
	turn    chan struct{} // holds a token while changed runs

	// Guarded by Watcher.mu.
	due      time.Time // of the next call; zero if there is none to come
	failures int       // in a row
}

// New returns a Watcher that watches nothing yet, for the caller to Run. warn is
// told, from the goroutine of Run, of callbacks that have failed for good, until
// the next change.
func New(warn func(dir string, err error)) (*Watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files of the host (the limit is fs.inotify.max_user_instances): %w", err)
	}
	return &Watcher{fs: fs, warn: warn, wake: make(chan struct{}, 1), byDir: map[string][]*Watch{}}, nil
}

// Add has changed called soon, and then after each change of the entries of dir, an
// absolute path, until the Watch is closed or Run ends. Its context ends then too.
func (w *Watcher) Add(dir string, changed func(context.Context) error) (*Watch, error) {
	one := &Watch{watcher: w, dir: filepath.Clean(dir), changed: changed, turn: make(chan struct{}, 1), due: time.Now()}
	one.ended, one.end = context.WithCancel(context.Background())
	w.mu.Lock()
	defer w.mu.Unlock()
	// Also if it is watched already: the directory may be another one by now.
	if err := w.fs.Add(one.dir); err != nil {
		one.end()
		return nil, fmt.Errorf("watch %s: %w", one.dir, err)
	}
	w.byDir[one.dir] = append(w.byDir[one.dir], one)
	w.poke()
	return one, nil
}

// Close ends the watch, and is called once. When it returns the callback does not run, nor ever again.
func (one *Watch) Close() {
	one.end()
	one.turn <- struct{}{} // never taken back: nobody else has a turn
	w := one.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.DeleteFunc(w.byDir[one.dir], func(other *Watch) bool { return other == one })
	if w.byDir[one.dir] = left; len(left) == 0 {
		delete(w.byDir, one.dir)
		_ = w.fs.Remove(one.dir) // it is not watched any more if the directory is gone
	}
}

// poke has Run look what is due.
func (w *Watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run calls those who watch, until ctx ends. It is called once, and gives the
// kernel's resources back.
func (w *Watcher) Run(ctx context.Context) {
	defer w.fs.Close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait, any := w.callDue(ctx); any {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		case event, open := <-w.fs.Events:
			if !open {
				return
			}
			w.touch(event.Name)
			w.touch(filepath.Dir(event.Name))
		case err := <-w.fs.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				w.touchAll()
			} else if err != nil {
				w.warn("", err)
			}
		}
	}
}

// touch has those called who watch the directory.
func (w *Watcher) touch(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	soon := time.Now().Add(settle)
	for _, one := range w.byDir[dir] {
		if one.failures = 0; one.due.IsZero() || one.due.After(soon) {
			one.due = soon
		}
	}
}

// touchAll is for changes that were lost.
func (w *Watcher) touchAll() {
	w.mu.Lock()
	dirs := make([]string, 0, len(w.byDir))
	for dir := range w.byDir {
		dirs = append(dirs, dir)
	}
	w.mu.Unlock()
	for _, dir := range dirs {
		w.touch(dir)
	}
}

// callDue makes the calls that are due, one after the other, and says how long it
// is to the next one, if there is one.
func (w *Watcher) callDue(ctx context.Context) (wait time.Duration, any bool) {
	for ctx.Err() == nil {
		next, at := w.next()
		if next == nil {
			return 0, false
		}
		if wait := time.Until(at); wait > 0 {
			return wait, true
		}
		w.call(ctx, next)
	}
	return 0, false
}

// next is the watch whose call comes first.
func (w *Watcher) next() (first *Watch, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, all := range w.byDir {
		for _, one := range all {
			if !one.due.IsZero() && (first == nil || one.due.Before(at)) {
				first, at = one, one.due
			}
		}
	}
	return first, at
}

func (w *Watcher) call(ctx context.Context, one *Watch) {
	w.mu.Lock()
	one.due = time.Time{}
	w.mu.Unlock()
	select {
	case one.turn <- struct{}{}:
	default:
		return // it is being closed
	}
	if one.ended.Err() != nil {
		<-one.turn
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(one.ended, cancel)
	err := one.changed(ctx)
	stop()
	cancel()
	<-one.turn
	if err != nil && one.ended.Err() == nil {
		w.failed(one, err)
	}
}

// failed plans another try, or gives up.
func (w *Watcher) failed(one *Watch, err error) {
	w.mu.Lock()
	again := one.failures < maxRetries
	if again {
		if retry := time.Now().Add(firstRetry << one.failures); one.due.IsZero() {
			one.due = retry
		}
		one.failures++
	}
	w.mu.Unlock()
	if !again {
		w.warn(one.dir, err)
	}
}
