package qemu

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sparse is a file of so many bytes, with data where at says.
func sparse(t *testing.T, size int64, at map[int64][]byte) *os.File {
	t.Helper()
	f := open(t, filepath.Join(t.TempDir(), "memory"), os.O_CREATE|os.O_RDWR)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for where, what := range at {
		if _, err := f.WriteAt(what, where); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestACopyOfMemoryIsWhatItWasAndHasNoZeros(t *testing.T) {
	const size = 8 << 20
	data := bytes.Repeat([]byte("data"), 3<<18)
	from := sparse(t, size, map[int64][]byte{
		4 << 10: {1}, 1 << 20: data, 5<<20 - 2: {2, 3, 4}, 6 << 20: make([]byte, 1<<20), size - 1: {5},
	})
	c, err := copyRAM(from, size)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.wait(within(t)); err != nil {
		t.Fatal(err)
	}
	if sumOf(t, c.file) != sumOf(t, from) {
		t.Error("the copy is another one")
	}
	if has, want := used(t, c.file), int64(len(data)+4*ramPage); has != want {
		t.Errorf("the copy takes %d bytes, want %d", has, want)
	}
	if err := c.file.Truncate(size / 2); !errors.Is(err, unix.EPERM) {
		t.Errorf("it can be made shorter: %v", err)
	}
}

func TestMemoryOfAnotherSizeIsNotCopied(t *testing.T) {
	c, err := copyRAM(sparse(t, 1<<20, nil), 2<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.wait(within(t)); err == nil || !strings.Contains(err.Error(), "1048576 bytes") {
		t.Errorf("%v", err)
	}
}

func TestACopyThatIsNotWantedEnds(t *testing.T) {
	from := sparse(t, 1<<40, map[int64][]byte{1 << 39: []byte("x")})
	c, err := copyRAM(from, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	c.close()
	if err := c.wait(within(t)); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	var none *ramCopy
	none.close()
	if err := none.wait(within(t)); err != nil {
		t.Errorf("a copy that nobody needs: %v", err)
	}
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("too late"))
	if err := (&ramCopy{done: make(chan struct{})}).wait(ended); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("%v", err)
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 4<<20)
	clear(data[1<<20 : 3<<20])
	data[2<<20], data[3<<20-1] = 'x', 'y'
	f := sparse(t, int64(len(data)), map[int64][]byte{0: data})
	before := sumOf(t, f)
	if err := digHoles(f); err != nil {
		t.Fatal(err)
	}
	if sumOf(t, f) != before {
		t.Error("the content has changed")
	}
	if has, want := used(t, f), int64(2<<20+2*ramPage); has != want {
		t.Errorf("%d bytes are left, want %d", has, want)
	}
}

func FuzzRunsAreAllOfABuffer(f *testing.F) {
	f.Add(uint64(1), 16<<10)
	f.Add(uint64(2), 1)
	f.Add(uint64(3), 0)
	f.Add(uint64(4), 40961)
	f.Fuzz(func(t *testing.T, seed uint64, size int) {
		if size < 0 || size > ramStep {
			return
		}
		random := rand.New(rand.NewPCG(seed, 0))
		b := make([]byte, size)
		for at := 0; at < size; at += ramPage {
			if random.IntN(2) == 1 {
				b[at+random.IntN(min(ramPage, size-at))] = 1
			}
		}
		back := make([]byte, 0, size)
		type run struct{ from, to int }
		var all []run
		for _, zeros := range []bool{true, false} {
			for from, to := range runs(b, zeros) {
				if from >= to || from%ramPage != 0 || bytes.Equal(b[from:to], make([]byte, to-from)) != zeros {
					t.Fatalf("%d to %d, zeros %v", from, to, zeros)
				}
				all = append(all, run{from, to})
			}
		}
		slices.SortFunc(all, func(a, b run) int { return a.from - b.from })
		for i, r := range all {
			if r.from != len(back) {
				t.Fatalf("run %d begins at %d, the one before ended at %d", i, r.from, len(back))
			}
			back = append(back, b[r.from:r.to]...)
		}
		if !bytes.Equal(back, b) {
			t.Errorf("runs make %d bytes of %d", len(back), len(b))
		}
	})
}
