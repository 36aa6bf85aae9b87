package merge_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/merge"
)

// cached is a cache with an entry per pair of layers, the first of which was
// not used for the longest.
type cached struct {
	dir     string
	pairs   [][]*erofs.Image
	paths   []string
	another []*erofs.Image // a pair that has no entry
	bytes   int64          // of an entry
}

func fill(t *testing.T, n int) *cached {
	t.Helper()
	dir := t.TempDir()
	c := &cached{dir: filepath.Join(dir, "cache")}
	base := layer(t, dir, "base")
	builder := merge.New(erofstest.Mkfs(t), c.dir, 0)
	for i := range n + 1 {
		pair := inspect(t, base, layer(t, dir, fmt.Sprintf("%c", 'a'+i)))
		if i == n {
			c.another = pair
			break
		}
		made, err := builder.Fsmeta(deadline(t), pair)
		if err != nil {
			t.Fatal(err)
		}
		c.pairs, c.paths = append(c.pairs, pair), append(c.paths, made.Meta.Path)
		c.bytes = made.Meta.Size
		if err := made.Meta.Close(); err != nil { // what is open is in use
			t.Fatal(err)
		}
		c.age(t, i, time.Duration(n-i)*time.Hour)
	}
	return c
}

// age makes an entry look as if it was last used that long ago.
func (c *cached) age(t *testing.T, i int, ago time.Duration) {
	t.Helper()
	then := time.Now().Add(-ago)
	if err := os.Chtimes(c.paths[i], then, then); err != nil {
		t.Fatal(err)
	}
}

// left says which entries are there.
func (c *cached) left() []int {
	var there []int
	for i, path := range c.paths {
		if _, err := os.Stat(path); err == nil {
			there = append(there, i)
		}
	}
	return there
}

// add builds one more entry, with a limit that holds the given number of them.
func (c *cached) add(t *testing.T, limit int) {
	t.Helper()
	made, err := fsmeta(t, merge.New(erofstest.Mkfs(t), c.dir, int64(limit)*c.bytes), c.another)
	if err != nil || made.Trim != nil || !made.Built {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := os.Stat(made.Meta.Path); err != nil {
		t.Errorf("the entry just made: %v", err)
	}
}

func TestWhatWasNotUsedForTheLongestGoesFirst(t *testing.T) {
	c := fill(t, 4)
	if c.add(t, 3); !slices.Equal(c.left(), []int{2, 3}) {
		t.Errorf("%v are left, want 2 and 3 beside the new one", c.left())
	}
}

func TestAUseCounts(t *testing.T) {
	c := fill(t, 4)
	got, err := fsmeta(t, merge.New(erofstest.Mkfs(t), c.dir, 0), c.pairs[0])
	if err != nil || got.Built {
		t.Fatalf("%+v, %v, want the entry", got, err)
	}
	if c.add(t, 3); !slices.Equal(c.left(), []int{0, 3}) {
		t.Errorf("%v are left, want 0, which was used, and 3", c.left())
	}
}

func TestNothingUsedOfLateIsRemoved(t *testing.T) {
	c := fill(t, 3)
	c.age(t, 1, 9*time.Minute)
	c.age(t, 2, -time.Hour) // a clock that was set back
	if c.add(t, 0+1); !slices.Equal(c.left(), []int{1, 2}) {
		t.Errorf("%v are left, want 1 and 2", c.left())
	}
}

// TestAnEntryInUseIsNotRemoved has another user that keeps it open, as a VM
// does; the next in line goes instead.
func TestAnEntryInUseIsNotRemoved(t *testing.T) {
	c := fill(t, 3)
	got, err := fsmeta(t, merge.New(erofstest.Mkfs(t), c.dir, 0), c.pairs[0])
	if err != nil || got.Built {
		t.Fatalf("%+v, %v, want the entry", got, err)
	}
	c.age(t, 0, 9*time.Hour)
	if c.add(t, 3); !slices.Equal(c.left(), []int{0, 2}) {
		t.Errorf("%v are left, want 0, which is in use, and 2", c.left())
	}
}

// TestAnEntryThatIsBeingRemovedIsMadeAnew has another process that is about to
// remove it.
func TestAnEntryThatIsBeingRemovedIsMadeAnew(t *testing.T) {
	c := fill(t, 1)
	f, err := os.Open(c.paths[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	got, err := fsmeta(t, merge.New(erofstest.Mkfs(t), c.dir, 0), c.pairs[0])
	if err != nil || !got.Built || got.Meta.Path != c.paths[0] {
		t.Errorf("%+v, %v, want it made anew", got, err)
	}
}

func TestWhatAKilledProcessLeftGoesToo(t *testing.T) {
	c := fill(t, 1)
	aside := c.paths[0] + ".0b1d0a9e"
	if err := os.Rename(c.paths[0], aside); err != nil {
		t.Fatal(err)
	}
	c.add(t, 1)
	if _, err := os.Stat(aside); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want it gone", aside, err)
	}
}

// TestManyBuildersKeepToTheLimitTogether has builders that find, make and
// remove entries of one directory at once, each of which must be there when it
// is returned.
func TestManyBuildersKeepToTheLimitTogether(t *testing.T) {
	c := fill(t, 6)
	ctx := deadline(t)
	var wg sync.WaitGroup
	errs := make([]error, 12)
	for i := range errs {
		wg.Go(func() {
			made, err := merge.New(erofstest.Mkfs(t), c.dir, c.bytes).Fsmeta(ctx, c.pairs[i%6])
			if err == nil {
				_, err = os.Stat(made.Meta.Path)
				err = errors.Join(err, made.Meta.Close(), made.Trim, erofs.CheckDevices(made.Meta, c.pairs[i%6]))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
