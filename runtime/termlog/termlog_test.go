package termlog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

const ofKubelet = "/var/lib/kubelet/pods/0f-1a/containers/app/12ab34cd"

func TestOnlyWhatKubernetesMakesForItIsAMessage(t *testing.T) {
	for _, c := range []struct {
		destination, source string
		readOnly, want      bool
	}{
		{"/dev/termination-log", "/some/file", false, true},
		{"/dev/../dev/termination-log", "/some/file", false, true},
		{"/dev/termination-log", "/some/file", true, false},
		{"/tmp/why", ofKubelet, false, true},
		{"/tmp/why", ofKubelet, true, false},
		{"/etc/hosts", "/var/lib/kubelet/pods/0f-1a/etc-hosts", false, false},
		{"/data", "/var/lib/kubelet/pods/0f-1a/volumes/kubernetes.io~empty-dir/containers/app/1", false, false},
		{"/data", ofKubelet + "/more", false, false},
		{"/data", "/var/lib/kubelet/pods/x/../containers/app/1", false, false},
	} {
		if got := Is(c.destination, c.source, c.readOnly); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func newFile(t *testing.T, content []byte) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "message")
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, path
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTheMessageTakesThePlaceOfWhatWasThere(t *testing.T) {
	for _, c := range [][2]string{{"", "why"}, {"longer before", "why"}, {"why", "longer now"}, {"why", ""}, {"why", "why"}} {
		f, path := newFile(t, []byte(c[0]))
		if err := f.Write([]byte(c[1])); err != nil {
			t.Fatal(err)
		}
		if got := content(t, path); string(got) != c[1] {
			t.Errorf("%q becomes %q, want %q", c[0], got, c[1])
		}
	}
}

// TestAFileThatNobodyChangedStays whole, however long it is.
func TestAFileThatNobodyChangedStays(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), Max/5)
	f, path := newFile(t, long)
	if err := f.Write(long[len(long)-Max:]); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); !bytes.Equal(got, long) {
		t.Errorf("%d bytes are left of %d", len(got), len(long))
	}
}

func TestALongMessageIsRefused(t *testing.T) {
	f, path := newFile(t, []byte("before"))
	if err := f.Write(make([]byte, Max+1)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
	if got := content(t, path); string(got) != "before" {
		t.Errorf("%q", got)
	}
}

// TestWhatTakesTheNameIsNotWritten: the file is the one that was opened.
func TestWhatTakesTheNameIsNotWritten(t *testing.T) {
	f, path := newFile(t, nil)
	other := filepath.Join(filepath.Dir(path), "other")
	if err := os.WriteFile(other, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, path); err != nil {
		t.Fatal(err)
	}
	if err := f.Write([]byte("why")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, other); string(got) != "other" {
		t.Errorf("%q", got)
	}
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	if _, err := Open("/dev/null"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("/dev/null: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "gone")); !os.IsNotExist(err) {
		t.Errorf("what is not there: %v", err)
	}
}
