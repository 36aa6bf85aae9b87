package files_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/files"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) string {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// descriptors is how many files this process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func TestOpenSaysWhatTheFileIs(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a"), "content")
	when := time.Unix(1700000000, 123456789)
	must(t, os.Chtimes(path, when, when))
	f, err := files.Open(path, files.ReadOnly)
	must(t, err)
	defer f.Close()
	var stat unix.Stat_t
	must(t, unix.Stat(path, &stat))
	if f.Path != path || !f.Regular || f.Size != 7 || f.Inode != stat.Ino || f.Dev != uint64(stat.Dev) || !f.ModTime.Equal(when) {
		t.Errorf("%+v, want the state of %+v", f, stat)
	}
}

func TestWhatIsNotRegularIsOpenedWithoutWaiting(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{fifo, dir, os.DevNull} {
		f, err := files.Open(path, files.ReadOnly)
		must(t, err)
		if f.Regular {
			t.Errorf("%s is a regular file", path)
		}
		must(t, f.Close())
	}
	if _, err := files.Open(filepath.Join(dir, "none"), files.ReadOnly); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("%v, want %v and the path", err, os.ErrNotExist)
	}
}

func TestOnlyOpenFollowsALink(t *testing.T) {
	dir := t.TempDir()
	path, link := write(t, filepath.Join(dir, "a"), "a"), filepath.Join(dir, "link")
	must(t, os.Symlink(path, link))
	behind, err := files.Open(link, files.ReadOnly)
	must(t, err)
	defer behind.Close()
	direct, err := files.OpenNoFollow(path, files.ReadOnly)
	must(t, err)
	defer direct.Close()
	if behind.Path != link || !behind.Same(direct) {
		t.Errorf("%+v, want the file of %+v", behind, direct)
	}
	if _, err := files.OpenNoFollow(link, files.ReadOnly); !errors.Is(err, unix.ELOOP) || !strings.Contains(err.Error(), link) {
		t.Errorf("%v, want %v and the path", err, unix.ELOOP)
	}
}

func TestAccessIsWhatWasAskedFor(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a"), "content")
	for access, want := range map[files.Access]bool{files.ReadOnly: false, files.ReadWrite: true} {
		f, err := files.Open(path, access)
		must(t, err)
		defer f.Close()
		if _, err := f.Handle().WriteAt([]byte("C"), 0); (err == nil) != want {
			t.Errorf("write with access %d: %v", access, err)
		}
	}
}

func TestReadAtReadsAllOrSaysWhyNot(t *testing.T) {
	f, err := files.Open(write(t, filepath.Join(t.TempDir(), "a"), "content"), files.ReadOnly)
	must(t, err)
	defer f.Close()
	buf := make([]byte, 4)
	if n, err := f.ReadAt(buf, 3); n != 4 || err != nil || string(buf) != "tent" {
		t.Errorf("%d, %v, %q", n, err, buf)
	}
	if n, err := f.ReadAt(buf, 5); n != 2 || err != io.EOF || !bytes.HasPrefix(buf, []byte("nt")) {
		t.Errorf("%d, %v, %q, want 2 and the end", n, err, buf)
	}
	if n, err := f.ReadAt(buf, -1); n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("%d, %v, want %v", n, err, unix.EINVAL)
	}
}

// TestTheHandleIsTheFile also has its flag for FIFOs taken away, which io_uring
// would mind.
func TestTheHandleIsTheFile(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a"), "old")
	before := descriptors(t)
	f, err := files.Open(path, files.ReadOnly)
	must(t, err)
	write(t, path+".new", "new")
	must(t, os.Rename(path+".new", path))
	var all sync.WaitGroup
	handles := make([]*os.File, 4)
	for i := range handles {
		all.Go(func() { handles[i] = f.Handle() })
	}
	all.Wait()
	for _, h := range handles {
		if h == nil || h != handles[0] {
			t.Fatalf("handles %v, want one", handles)
		}
	}
	if got, err := io.ReadAll(handles[0]); err != nil || string(got) != "old" {
		t.Errorf("%q, %v, want what was opened", got, err)
	}
	flags, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFL, 0)
	must(t, err)
	if closed, err := unix.FcntlInt(uintptr(f.Fd()), unix.F_GETFD, 0); err != nil || closed&unix.FD_CLOEXEC == 0 || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x and %#x, %v, want close-on-exec and blocking", closed, flags, err)
	}
	for range 2 {
		must(t, f.Close())
	}
	if f.Handle() != nil {
		t.Error("a closed file has a handle")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors after, %d before", after, before)
	}
}

func TestOfOwnsTheFile(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "a"), "content")
	given, err := os.Open(path)
	must(t, err)
	f, err := files.Of(given)
	must(t, err)
	if f.Path != path || f.Size != 7 || f.Handle() != given {
		t.Errorf("%+v", f)
	}
	must(t, f.Close())
	if err := given.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want it to be closed", err)
	}
	if _, err := files.Of(given); err == nil {
		t.Error("a closed file is taken")
	}
}

func TestASetOpensAPathOnce(t *testing.T) {
	dir := t.TempDir()
	a, b := write(t, filepath.Join(dir, "a"), "a"), write(t, filepath.Join(dir, "b"), "b")
	before := descriptors(t)
	set := files.NewSet()
	first, err := set.Open(a, files.ReadOnly)
	must(t, err)
	again, err := set.Open(a, files.ReadOnly)
	must(t, err)
	if first != again || descriptors(t) != before+1 {
		t.Errorf("%p and %p, %d more descriptors, want one", first, again, descriptors(t)-before)
	}
	if _, err := set.Open(a, files.ReadWrite); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), a) {
		t.Errorf("%v: a layer is opened for writing", err)
	}
	adopted, err := files.Open(b, files.ReadOnly)
	must(t, err)
	must(t, set.Adopt(adopted))
	twice, err := files.Open(b, files.ReadOnly)
	must(t, err)
	if err := set.Adopt(twice); !errdefs.IsInvalidArgument(err) || twice.Handle() != nil {
		t.Errorf("%v, want a refusal and the file closed", err)
	}
	if set.Handle(a) != first.Handle() || set.Handle(b) != adopted.Handle() || set.Handle(dir) != nil {
		t.Error("the handles are not those of the files")
	}
	if _, err := set.Open(filepath.Join(dir, "none"), files.ReadOnly); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want %v", err, os.ErrNotExist)
	}
	for range 2 {
		must(t, set.Close())
	}
	if set.Handle(a) != nil || descriptors(t) != before {
		t.Errorf("%d descriptors more after Close", descriptors(t)-before)
	}
}

func TestANamelessFileLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := files.Nameless(dir)
	must(t, err)
	_, err = f.WriteString("content")
	must(t, err)
	must(t, f.Close())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := files.Nameless("/proc/self"); err == nil || !strings.Contains(err.Error(), "O_TMPFILE") || !strings.Contains(err.Error(), "/proc/self") {
		t.Errorf("%v, want one that names the directory and what it lacks", err)
	}
}

func TestPublishReplacesOnlyIfTold(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "name")
	publish := func(content string, replace bool) error {
		f, err := files.Nameless(dir)
		must(t, err)
		defer f.Close()
		_, err = f.WriteString(content)
		must(t, err)
		return files.Publish(f, path, replace)
	}
	want := func(content string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%q, %v, want %q", got, err, content)
		}
		if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v, want a file of mode 0600", info.Mode(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%v, %v, want one file", left, err)
		}
	}
	must(t, publish("first", false))
	want("first")
	if err := publish("second", false); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v, want %v and the path", err, os.ErrExist)
	}
	want("first")
	must(t, publish("third", true))
	want("third")

	must(t, os.Remove(path))
	must(t, os.Symlink("elsewhere", path))
	if err := publish("fourth", false); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v, want %v: a link counts", err, os.ErrExist)
	}
	must(t, publish("fifth", true))
	want("fifth")
	must(t, errors.Join(os.Remove(path), os.Mkdir(path, 0o700)))
	if err := publish("sixth", true); err == nil {
		t.Error("a directory is replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v are left, want the directory", left, err)
	}
}

// TestTooManyFilesAreSaidSo has a limit that this process is about to reach.
func TestTooManyFilesAreSaidSo(t *testing.T) {
	must(t, files.Room(1))
	if err := files.Room(1 << 40); !errors.Is(err, files.ErrLimit) || !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "LimitNOFILE") {
		t.Errorf("%v, want %v and the setting", err, files.ErrLimit)
	}
	path := write(t, filepath.Join(t.TempDir(), "a"), "a")
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 3
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	_, err := files.Open(path, files.ReadOnly)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	if !errors.Is(err, files.ErrLimit) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v, want %v and the path", err, files.ErrLimit)
	}
}
