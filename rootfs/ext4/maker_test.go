package ext4_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/ext4"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/test/need"
)

// host returns the path of a tool of e2fsprogs. The test needs it.
func host(t testing.TB, name string) string {
	t.Helper()
	for _, name := range []string{name, "/sbin/" + name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	need.Missing(t, "no %s in PATH; install e2fsprogs", name)
	return ""
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func maker(t testing.TB) ext4.Maker {
	return ext4.Maker{Mkfs: host(t, "mkfs.ext4"), Dir: filepath.Join(t.TempDir(), "x", "templates")}
}

// make makes an image and closes it.
func makeImage(t testing.TB, m ext4.Maker, path string, size int64, id uuid.UUID) {
	t.Helper()
	f, err := m.Make(deadline(t), path, ext4.Format{FS: "ext4", Size: size, UUID: id})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTheJournalIsNoLargerThanItMayBe(t *testing.T) {
	m := maker(t)
	for _, c := range []struct {
		size    int64
		journal int
		want    string
	}{
		{16 << 30, 4, "(4096k|4M)"},
		{16 << 30, 0, "128M"},
		{64 << 20, 4, "(4096k|4M)"},
		{32 << 20, 4, ""}, // as without
	} {
		path := filepath.Join(t.TempDir(), "image")
		f, err := m.Make(deadline(t), path, ext4.Format{FS: "ext4", Size: c.size, JournalMiB: c.journal})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		output(t, "e2fsck", "-f", "-n", path)
		if got := output(t, "dumpe2fs", "-h", path); c.want != "" && !regexp.MustCompile(`(?m)^Total journal size: +`+c.want+`$`).MatchString(got) {
			t.Errorf("%d bytes, journal of %d MiB: want %s:\n%s", c.size, c.journal, c.want, got)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(host(t, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

var id = uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")

// TestAnImageIsAWholeFilesystem has sizes with one group and with many, with
// small and with usual blocks, and one that ends within a block.
func TestAnImageIsAWholeFilesystem(t *testing.T) {
	m := maker(t)
	for _, size := range []int64{2 << 20, 8 << 20, 64 << 20, 64<<20 + 512, 600 << 20, 5 << 30, 100 << 30} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "rwlayer.img")
			makeImage(t, m, path, size, id)
			var stat syscall.Stat_t
			must(t, syscall.Lstat(path, &stat))
			if stat.Mode != syscall.S_IFREG|0o600 || stat.Size != size || stat.Nlink != 1 {
				t.Errorf("mode %o, %d bytes, %d links, want %o, %d, 1", stat.Mode, stat.Size, stat.Nlink, syscall.S_IFREG|0o600, size)
			}
			if used, most := stat.Blocks*512, 400<<10+size/100000; used > most {
				t.Errorf("takes %d bytes of the disk, want at most %d", used, most)
			}
			output(t, "e2fsck", "-fn", path)
			said := output(t, "dumpe2fs", path)
			for _, want := range []string{id.String(), "metadata_csum_seed", "has_journal", "Filesystem state:         clean"} {
				if size == 2<<20 && want == "has_journal" {
					continue // there is no room for one
				}
				if !strings.Contains(said, want) {
					t.Errorf("no %s in\n%.2000s", want, said)
				}
			}
			copies := regexp.MustCompile(`(?m)^  Backup superblock at (\d+)`).FindAllStringSubmatch(said, -1)
			if strings.Contains(said, "\nGroup 1:") && len(copies) == 0 {
				t.Error("several groups, but no copy of the superblock")
			}
			block := regexp.MustCompile(`(?m)^Block size: +(\d+)`).FindStringSubmatch(said)[1]
			for _, c := range copies {
				said := output(t, "dumpe2fs", "-h", "-o", "superblock="+c[1], "-o", "blocksize="+block, path)
				if !strings.Contains(said, id.String()) {
					t.Errorf("the superblock at block %s has another UUID:\n%s", c[1], said)
				}
			}
			if stat := output(t, "debugfs", "-R", "stat /", path); !regexp.MustCompile(`User: +0 +Group: +0 `).MatchString(stat) {
				t.Errorf("the root is not root's:\n%s", stat)
			}
		})
	}
}

// TestImagesOfOneTemplateAreToldApart has no UUID asked for.
func TestImagesOfOneTemplateAreToldApart(t *testing.T) {
	m, dir := maker(t), t.TempDir()
	seen := make(map[string]bool)
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprint(i))
		makeImage(t, m, path, 8<<20, uuid.Nil)
		said := output(t, "dumpe2fs", "-h", path)
		for _, key := range []string{"Filesystem UUID", "Directory Hash Seed"} {
			value := regexp.MustCompile(`(?m)^` + key + `: +([0-9a-f-]{36})$`).FindStringSubmatch(said)
			if value == nil || value[1] == uuid.Nil.String() || seen[value[1]] {
				t.Errorf("%s of image %d is %q", key, i, value)
				continue
			}
			seen[value[1]] = true
		}
	}
}

// TestTheImageIsTheFileThatIsReturned writes to the one and reads the other.
func TestTheImageIsTheFileThatIsReturned(t *testing.T) {
	m, path := maker(t), filepath.Join(t.TempDir(), "rwlayer.img")
	f, err := m.Make(deadline(t), path, ext4.Format{FS: "ext4", Size: 8 << 20})
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("mark"), 0)
	must(t, err)
	named, err := os.ReadFile(path)
	must(t, err)
	if !bytes.HasPrefix(named, []byte("mark")) {
		t.Errorf("%q holds another file", path)
	}
}

func TestWhatIsThereIsNotTouched(t *testing.T) {
	m, dir := maker(t), t.TempDir()
	file, directory, link := filepath.Join(dir, "file"), filepath.Join(dir, "dir"), filepath.Join(dir, "link")
	must(t, errors.Join(os.WriteFile(file, []byte("precious"), 0o644), os.Mkdir(directory, 0o755), os.Symlink("nowhere", link)))
	for _, path := range []string{file, directory, link} {
		_, err := m.Make(deadline(t), path, ext4.Format{FS: "ext4", Size: 8 << 20})
		if !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, os.ErrExist)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v: the link was followed", err)
	}
}

// TestOneOfManyMakesTheImage has all callers pass the first look at the path.
func TestOneOfManyMakesTheImage(t *testing.T) {
	m, path := maker(t), filepath.Join(t.TempDir(), "rwlayer.img")
	ctx := deadline(t)
	const callers = 8
	made, errs := make([]*os.File, callers), make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() { made[i], errs[i] = m.Make(ctx, path, ext4.Format{FS: "ext4", Size: 64 << 20}) })
	}
	all.Wait()
	winners := 0
	for i, err := range errs {
		if err == nil {
			winners++
			made[i].Close()
		} else if !errors.Is(err, os.ErrExist) || made[i] != nil {
			t.Errorf("caller %d: %v, %v, want %v", i, made[i], err, os.ErrExist)
		}
	}
	if winners != 1 {
		t.Errorf("%d callers made it, want 1", winners)
	}
	output(t, "e2fsck", "-fn", path)
	if left, err := os.ReadDir(m.Dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v among the templates, want one", left, err)
	}
}

// wrapped is an mkfs.ext4 that runs the script before the real one, which is $0
// and takes $@, and counts its runs in the file at counts.
func wrapped(t *testing.T, script string) (path, counts string) {
	t.Helper()
	path, counts = filepath.Join(t.TempDir(), "mkfs.ext4"), filepath.Join(t.TempDir(), "counts")
	text := fmt.Sprintf("#!/bin/sh\necho >>%s\nreal=%s\n%s\nexec $real \"$@\"\n", counts, host(t, "mkfs.ext4"), script)
	must(t, os.WriteFile(path, []byte(text), 0o755))
	return path, counts
}

// TestATemplateIsMadeOnce also has it spoilt in every way, which makes it anew.
func TestATemplateIsMadeOnce(t *testing.T) {
	mkfs, counts := wrapped(t, "")
	m := ext4.Maker{Mkfs: mkfs, Dir: filepath.Join(t.TempDir(), "templates")}
	dir, want := t.TempDir(), 0
	template := func() string {
		list, err := filepath.Glob(filepath.Join(m.Dir, "*"))
		if err != nil || len(list) != 1 {
			t.Fatalf("%q, %v among the templates, want one", list, err)
		}
		return list[0]
	}
	for i, step := range []struct {
		name string
		runs int
		do   func() error
	}{
		{"first", 1, func() error { return nil }},
		{"second", 0, func() error { return nil }},
		{"flipped bit", 1, func() error { return flip(template(), 1024+0x78) }},
		{"flipped bit in a hole", 1, func() error { return flip(template(), 7<<20) }},
		{"cut", 1, func() error { return os.Truncate(template(), 4<<20) }},
		{"empty", 1, func() error { return os.Truncate(template(), 0) }},
		{"link", 1, func() error {
			path := template()
			return errors.Join(os.Rename(path, filepath.Join(dir, "aside")), os.Symlink(filepath.Join(dir, "aside"), path))
		}},
		{"another tool", 1, func() error { return errors.Join(os.Chtimes(mkfs, time.Now(), time.Now()), os.Remove(template())) }},
		{"last", 0, func() error { return nil }},
	} {
		must(t, step.do())
		path := filepath.Join(dir, fmt.Sprint(i))
		makeImage(t, m, path, 8<<20, id)
		output(t, "e2fsck", "-fn", path)
		want += step.runs
		if got, err := os.ReadFile(counts); err != nil || len(got) != want {
			t.Fatalf("%s: %d runs of mkfs.ext4 in all, %v, want %d", step.name, len(got), err, want)
		}
	}
}

func flip(path string, off int64) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], off)
	return err
}

// TestAnOlderToolIsTaken has one that does not know of files that read as zeros.
func TestAnOlderToolIsTaken(t *testing.T) {
	mkfs, counts := wrapped(t, `case "$*" in *prezeroed*) echo 'Bad option(s) specified' >&2; exit 1;; esac`)
	m := ext4.Maker{Mkfs: mkfs, Dir: t.TempDir()}
	path := filepath.Join(t.TempDir(), "rwlayer.img")
	makeImage(t, m, path, 64<<20, id)
	output(t, "e2fsck", "-fn", path)
	if got, err := os.ReadFile(counts); err != nil || len(got) != 2 {
		t.Errorf("%d runs, %v, want 2", len(got), err)
	}
}

// TestAFailureLeavesNothing has tools that fail in every way, and directories
// that cannot be written to.
func TestAFailureLeavesNothing(t *testing.T) {
	tool := func(script string) string { path, _ := wrapped(t, script); return path }
	for name, c := range map[string]struct {
		mkfs, dir string
		format    ext4.Format
		want      error
		says      string
	}{
		"no tool":                  {mkfs: "/nonexistent/mkfs.ext4", want: ext4.ErrTool, says: "/nonexistent/mkfs.ext4"},
		"not in PATH":              {mkfs: "mkfs.of.nobody", want: ext4.ErrTool, says: "mkfs.of.nobody"},
		"no program":               {mkfs: "/etc/passwd", want: ext4.ErrTool, says: "/etc/passwd"},
		"fails":                    {mkfs: tool("echo no such luck >&2; exit 3"), want: ext4.ErrMake, says: "no such luck"},
		"does nothing":             {mkfs: tool("exit 0"), want: ext4.ErrMake, says: "not ext4"},
		"cuts the file":            {mkfs: tool(": >/proc/self/fd/3; exit 0"), want: ext4.ErrMake, says: "superblock"},
		"cuts the file afterwards": {mkfs: tool(`$real "$@"; truncate -s 1M /proc/self/fd/3; exit 0`), want: ext4.ErrMake, says: "1048576 bytes"},
		"without the features":     {mkfs: tool(`exec $real -q -t ext4 -O ^metadata_csum /proc/self/fd/3`), want: ext4.ErrMake, says: "metadata_csum_seed"},
		"no template":              {dir: "/proc/self/templates", says: "/proc/self/templates"},
		"no xfs":                   {format: ext4.Format{FS: "xfs", Size: 8 << 20}, says: "xfs"},
		"no size":                  {format: ext4.Format{FS: "ext4"}, says: "0 bytes"},
		"negative size":            {format: ext4.Format{FS: "ext4", Size: -512}, says: "-512 bytes"},
		"odd size":                 {format: ext4.Format{FS: "ext4", Size: 8<<20 + 1}, says: "whole sectors"},
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := maker(t), t.TempDir()
			path := filepath.Join(dir, "rwlayer.img")
			if c.mkfs != "" {
				m.Mkfs = c.mkfs
			}
			if c.dir != "" {
				m.Dir = c.dir
			}
			if c.format == (ext4.Format{}) {
				c.format = ext4.Format{FS: "ext4", Size: 8 << 20}
			}
			f, err := m.Make(deadline(t), path, c.format)
			if err == nil || f != nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, %v, want %v with %q and the path", f, err, c.want, c.says)
			}
			for _, d := range []string{dir, m.Dir} {
				if left, err := os.ReadDir(d); len(left) > 0 {
					t.Errorf("%v, %v left in %s", left, err, d)
				}
			}
		})
	}
}

// TestAToolThatHangsIsKilled has one that has children, too.
func TestAToolThatHangsIsKilled(t *testing.T) {
	mkfs, _ := wrapped(t, "sleep 600 & sleep 600")
	m, dir := ext4.Maker{Mkfs: mkfs, Dir: t.TempDir()}, t.TempDir()
	cause := errors.New("took too long")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, cause)
	defer cancel()
	begun := time.Now()
	_, err := m.Make(ctx, filepath.Join(dir, "rwlayer.img"), ext4.Format{FS: "ext4", Size: 8 << 20})
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), mkfs) {
		t.Errorf("%v, want %v and the tool", err, cause)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v, %v left", left, err)
	}
}

func TestTemplatesAreBounded(t *testing.T) {
	m, dir := maker(t), t.TempDir()
	must(t, os.MkdirAll(m.Dir, 0o700))
	for i := range 40 {
		old, when := filepath.Join(m.Dir, fmt.Sprintf("%d.ext4", i)), time.Now().Add(-time.Duration(i+1)*time.Hour)
		must(t, errors.Join(os.WriteFile(old, nil, 0o400), os.Chtimes(old, when, when)))
	}
	other := filepath.Join(m.Dir, "something else")
	must(t, os.WriteFile(other, nil, 0o400))
	makeImage(t, m, filepath.Join(dir, "rwlayer.img"), 8<<20, id)
	left, err := filepath.Glob(filepath.Join(m.Dir, "*.ext4"))
	if err != nil || len(left) != 32 {
		t.Errorf("%d, %v are left, want 32", len(left), err)
	}
	if _, err := os.Stat(filepath.Join(m.Dir, "30.ext4")); err != nil {
		t.Errorf("the 31 newest of the old ones are to stay: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// TestAnImageIsWhatTheInspectionTakes closes the circle.
func TestAnImageIsWhatTheInspectionTakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rwlayer.img")
	makeImage(t, maker(t), path, 64<<20, id)
	f, err := files.Open(path, files.ReadWrite)
	must(t, err)
	defer f.Close()
	must(t, ext4.Inspect(f))
}

// BenchmarkMake is an image of a template that is there, against one that
// mkfs.ext4 makes with the same options.
func BenchmarkMake(b *testing.B) {
	for _, size := range []int64{64 << 20, 10 << 30, 100 << 30} {
		m, ctx, path := maker(b), deadline(b), filepath.Join(b.TempDir(), "rwlayer.img")
		name := fmt.Sprintf("size=%dMiB", size>>20)
		b.Run(name+"/clone", func(b *testing.B) {
			makeImage(b, m, path, size, id)
			for b.Loop() {
				must(b, os.Remove(path))
				makeImage(b, m, path, size, id)
			}
			must(b, os.Remove(path))
		})
		b.Run(name+"/mkfs", func(b *testing.B) {
			for b.Loop() {
				f, err := files.Nameless(filepath.Dir(path))
				must(b, err)
				must(b, f.Truncate(size))
				cmd := exec.CommandContext(ctx, m.Mkfs, "-q", "-O", "metadata_csum,metadata_csum_seed,^resize_inode", "-E", "nodiscard,root_owner=0:0,assume_storage_prezeroed=1", "/proc/self/fd/3")
				cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{f}, io.Discard, io.Discard
				must(b, cmd.Run())
				must(b, f.Sync())
				must(b, errors.Join(files.Publish(f, path, false), f.Close(), os.Remove(path)))
			}
		})
	}
}
