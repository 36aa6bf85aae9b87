package merge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/merge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func inspect(t testing.TB, paths ...string) []*erofs.Image {
	t.Helper()
	var images []*erofs.Image
	for _, path := range paths {
		images = append(images, erofstest.Inspect(t, path))
	}
	return images
}

// fsmeta closes at the end of the test what the builder returns.
func fsmeta(t testing.TB, b *merge.Builder, layers []*erofs.Image) (*merge.Result, error) {
	t.Helper()
	got, err := b.Fsmeta(deadline(t), layers)
	if err == nil {
		t.Cleanup(func() { got.Meta.Close() })
	}
	return got, err
}

func layer(t testing.TB, dir, name string, options ...string) string {
	return erofstest.Layer(t, dir, name, entries(name), options...)
}

func entries(name string) []erofstest.Entry {
	body := strings.Repeat(name, 30001/len(name))
	return []erofstest.Entry{erofstest.Dir("d"), erofstest.File("d/"+name, body)}
}

// files are the names in the cache.
func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestAnIndexIsBuiltOnceAndThenFound(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"), layer(t, dir, "c"))
	cache := filepath.Join(dir, "x", "cache")
	var first *merge.Result
	for i, b := range []*merge.Builder{merge.New(erofstest.Mkfs(t), cache, 0), merge.New(erofstest.Mkfs(t), cache, 0)} {
		got, err := fsmeta(t, b, layers)
		if err != nil {
			t.Fatal(err)
		}
		if got.Built != (i == 0) {
			t.Errorf("round %d: built is %t", i, got.Built)
		}
		if err := erofs.CheckDevices(got.Meta, layers); err != nil {
			t.Error(err)
		}
		if first == nil {
			first = got
		}
		if got.Meta.Path != first.Meta.Path || got.Meta.Inode != first.Meta.Inode {
			t.Errorf("round %d: %+v, before %+v", i, got.Meta, first.Meta)
		}
	}
	if names := files(t, cache); len(names) != 1 {
		t.Errorf("%v are in the cache, want one file", names)
	}
	if info, err := os.Stat(first.Meta.Path); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("%v, %v, want mode 0444", info, err)
	}
}

// TestWhatIsInTheCacheRunsNoTool has one that says so when it runs.
func TestWhatIsInTheCacheRunsNoTool(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	mkfs := script(t, "echo >>"+ran+"\nexec "+erofstest.Mkfs(t)+` "$@"`)
	layers, cache := inspect(t, layer(t, dir, "a"), layer(t, dir, "b")), filepath.Join(dir, "cache")
	for i, want := range []int{2, 2, 2} { // its version, and the merge
		if _, err := fsmeta(t, merge.New(mkfs, cache, 0), layers); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(ran); err != nil || len(got) != want {
			t.Errorf("%d runs up to round %d, %v, want %d", len(got), i, err, want)
		}
	}
}

// TestTheKeySaysWhatTheLayersAre changes one thing at a time, each of which
// must make another index.
func TestTheKeySaysWhatTheLayersAre(t *testing.T) {
	dir := t.TempDir()
	a, b := layer(t, dir, "a"), layer(t, dir, "b")
	builder := merge.New(erofstest.Mkfs(t), filepath.Join(dir, "cache"), 0)
	seen := make(map[string]string)
	for _, step := range []struct {
		name   string
		change func()
		order  []string
	}{
		{"first", func() {}, []string{a, b}},
		{"order", func() {}, []string{b, a}},
		{"more", func() {}, []string{a, b, a}},
		{"replaced, with the same content and time", func() {
			info, err := os.Stat(b)
			if err != nil {
				t.Fatal(err)
			}
			aside := b + ".new"
			data, err := os.ReadFile(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(aside, data, 0o644), os.Chtimes(aside, info.ModTime(), info.ModTime()), os.Rename(aside, b)); err != nil {
				t.Fatal(err)
			}
		}, []string{a, b}},
		{"touched", func() {
			if err := os.Chtimes(b, time.Unix(1, 1), time.Unix(1, 1)); err != nil {
				t.Fatal(err)
			}
		}, []string{a, b}},
		{"rewritten in place, with the same time", func() {
			f, err := os.OpenFile(b, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("another UUID...."), 1024+48); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(b, time.Unix(1, 1), time.Unix(1, 1)); err != nil {
				t.Fatal(err)
			}
		}, []string{a, b}},
	} {
		step.change()
		got, err := fsmeta(t, builder, inspect(t, step.order...))
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if before, ok := seen[got.Meta.Path]; ok || !got.Built {
			t.Errorf("%s has the index of %q (built %t)", step.name, before, got.Built)
		}
		seen[got.Meta.Path] = step.name
	}
}

// TestManyBuildersAtOnceAgree stands for several shims: nothing is shared
// between the builders but the directory.
func TestManyBuildersAtOnceAgree(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"))
	cache := filepath.Join(dir, "cache")
	ctx := deadline(t)
	const builders = 16
	results := make([]*merge.Result, builders)
	errs := make([]error, builders)
	var wg sync.WaitGroup
	for i := range builders {
		wg.Go(func() { results[i], errs[i] = merge.New(erofstest.Mkfs(t), cache, 0).Fsmeta(ctx, layers) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		defer r.Meta.Close()
		if r.Meta.Inode != results[0].Meta.Inode {
			t.Errorf("builder %d has inode %d, builder 0 %d", i, r.Meta.Inode, results[0].Meta.Inode)
		}
	}
	if names := files(t, cache); len(names) != 1 {
		t.Errorf("%v are in the cache, want one file", names)
	}
}

func TestACorruptEntryIsBuiltAnew(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"))
	cache := filepath.Join(dir, "cache")
	builder := merge.New(erofstest.Mkfs(t), cache, 0)
	good, err := fsmeta(t, builder, layers)
	if err != nil {
		t.Fatal(err)
	}
	other, err := fsmeta(t, builder, []*erofs.Image{layers[1], layers[0]})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good.Meta.Path)
	if err != nil {
		t.Fatal(err)
	}
	otherWhole, err := os.ReadFile(other.Meta.Path)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		out := bytes.Clone(whole)
		out[at] ^= 1
		return out
	}
	for name, data := range map[string][]byte{
		"empty":                nil,
		"truncated":            whole[:len(whole)-512],
		"a bit of metadata":    flip(2000),
		"a bit of the table":   flip(1152 + 64),
		"a bit of the seal":    flip(len(whole) - 500),
		"longer":               append(bytes.Clone(whole), make([]byte, 512)...),
		"another chain's":      otherWhole,
		"garbage":              bytes.Repeat([]byte("x"), len(whole)),
		"zeros of that length": make([]byte, len(whole)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.Remove(good.Meta.Path), os.WriteFile(good.Meta.Path, data, 0o444)); err != nil {
				t.Fatal(err)
			}
			got, err := fsmeta(t, builder, layers)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Built || got.Meta.Path != good.Meta.Path || got.Meta.Super.UUID != good.Meta.Super.UUID {
				t.Errorf("%+v, want one built in the same place", got)
			}
			if names := files(t, cache); len(names) != 2 {
				t.Errorf("%v are in the cache, want two files", names)
			}
		})
	}
}

func TestIneligibleLayersAreRefused(t *testing.T) {
	dir := t.TempDir()
	a := layer(t, dir, "a")
	index := filepath.Join(dir, "cache")
	merged, err := fsmeta(t, merge.New(erofstest.Mkfs(t), index, 0), inspect(t, a, a))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		layers []string
		want   error
		says   string
	}{
		"one layer":         {[]string{a}, merge.ErrIneligible, "there are 1"},
		"other block size":  {[]string{a, layer(t, dir, "small", "-b1024")}, merge.ErrIneligible, "of 1024"},
		"an index":          {[]string{a, merged.Meta.Path}, merge.ErrIneligible, "2 devices"},
		"compressed":        {[]string{a, layer(t, dir, "z", "-zlz4")}, merge.ErrIneligible, "compressed"},
		"inline data":       {[]string{a, erofstest.LayerWith(t, dir, "i", entries("i"), "--tar=f")}, merge.ErrBuild, "unsupported datalayout"},
		"more than allowed": {make([]string, merge.MaxLayers+1), merge.ErrIneligible, "1001"},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []*erofs.Image
			if c.layers[0] == "" {
				layers = make([]*erofs.Image, len(c.layers))
			} else {
				layers = inspect(t, c.layers...)
			}
			cache := filepath.Join(t.TempDir(), "cache")
			_, err := fsmeta(t, merge.New(erofstest.Mkfs(t), cache, 0), layers)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with %q", err, c.want, c.says)
			}
			if names := files(t, cache); len(names) != 0 {
				t.Errorf("%v are left in the cache", names)
			}
		})
	}
}

// script makes an executable that stands in for mkfs.erofs where the real one
// does not fail on demand.
func script(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake-mkfs.erofs")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAToolThatCannotBeUsedIsNamed(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"))
	const fine = `case "$1" in --version) echo "mkfs.erofs (erofs-utils) 1.9.3"; exit;; esac` + "\n"
	for name, c := range map[string]struct {
		mkfs string
		want error
		says string
	}{
		"missing":        {"/nonexistent/mkfs.erofs", merge.ErrTool, "/nonexistent/mkfs.erofs"},
		"not in PATH":    {"no-such-mkfs.erofs", merge.ErrTool, "PATH"},
		"a directory":    {"/usr", merge.ErrTool, "/usr"},
		"too old":        {script(t, `echo "mkfs.erofs (erofs-utils) 1.9.2"`), merge.ErrTool, "1.9.2"},
		"much too old":   {script(t, `echo "mkfs.erofs 1.5"`), merge.ErrTool, "1.5.0"},
		"no version":     {script(t, `echo hello`), merge.ErrTool, "hello"},
		"fails at once":  {script(t, `echo why >&2; exit 1`), merge.ErrTool, "why"},
		"fails to merge": {script(t, fine+`echo "<E> erofs: it is broken" >&2; exit 1`), merge.ErrBuild, "it is broken"},
		"talks for long": {script(t, fine+`yes | head -c 1000000 >&2; echo "the end" >&2; exit 1`), merge.ErrBuild, "the end"},
		"makes nothing":  {script(t, fine), merge.ErrBuild, "empty"},
		"makes garbage":  {script(t, fine+`head -c 8192 /dev/zero >&3`), merge.ErrBuild, "not an EROFS image"},
		"makes a layer":  {script(t, fine+`cat "$8" >&3`), merge.ErrBuild, "0 devices"},
		"dies by signal": {script(t, fine+`kill -9 $$`), merge.ErrBuild, "killed"},
		"is not ELF":     {notAProgram(t), merge.ErrTool, "exec format"},
		"newer is welcome": {script(t, `case "$1" in --version) echo "mkfs.erofs (erofs-utils) 2.0-g123"; exit;; esac
exec `+erofstest.Mkfs(t)+` "$@"`), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "cache")
			_, err := fsmeta(t, merge.New(c.mkfs, cache, 0), layers)
			if !errors.Is(err, c.want) || err != nil && (!strings.Contains(err.Error(), c.says) || len(err.Error()) > 4000) {
				t.Errorf("%v, want %v with %q", err, c.want, c.says)
			}
			if names := files(t, cache); (len(names) == 0) != (c.want != nil) {
				t.Errorf("%v in the cache after %v", names, err)
			}
		})
	}
}

func notAProgram(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mkfs.erofs")
	if err := os.WriteFile(path, []byte{1, 2, 3, 4}, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTheDeadlineKillsTheTool has a tool that reports its pid and then hangs.
func TestTheDeadlineKillsTheTool(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"))
	started := filepath.Join(dir, "started")
	mkfs := script(t, `case "$1" in --version) echo "mkfs.erofs (erofs-utils) 1.9.3"; exit;; esac
echo $$ >`+started+`
exec sleep 60`)
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err := merge.New(mkfs, filepath.Join(dir, "cache"), 0).Fsmeta(ctx, layers)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, merge.ErrBuild) {
		t.Errorf("%v, want the deadline as the reason", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	pid, err := os.ReadFile(started)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%s", bytes.TrimSpace(pid))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process %s is still there: %v", pid, err)
	}
	if names := files(t, filepath.Join(dir, "cache")); len(names) != 0 {
		t.Errorf("%v are left in the cache", names)
	}
}

func TestACacheThatCannotBeWrittenIsNamed(t *testing.T) {
	dir := t.TempDir()
	layers := inspect(t, layer(t, dir, "a"), layer(t, dir, "b"))
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cache := range []string{filepath.Join(taken, "cache"), "/proc/self/cache"} {
		_, err := fsmeta(t, merge.New(erofstest.Mkfs(t), cache, 0), layers)
		if err == nil || !strings.Contains(err.Error(), filepath.Dir(cache)) {
			t.Errorf("%s: %v, want an error that names it", cache, err)
		}
	}
}
