package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestDisksLeaveWithTheirContainerOnlyOnceTheGuestHasLetGo: a disk that is
// mounted is not pulled, and the containers beside it go on.
func TestDisksLeaveWithTheirContainerOnlyOnceTheGuestHasLetGo(t *testing.T) {
	w := running(t, newFakeAgent())
	first := w.vm.attached()
	for _, id := range []string{"kept", "gone"} {
		if _, err := w.Create(t.Context(), w.request(t, id, "")); err != nil {
			t.Fatal(err)
		}
	}
	all := w.vm.attached()
	if len(first) == 0 || len(all) != 3*len(first) {
		t.Fatalf("disks %q for one container, %q for three", first, all)
	}
	if _, err := w.Delete(t.Context(), "gone", ""); err != nil {
		t.Fatal(err)
	}
	left := w.vm.attached()
	if len(left) != 2*len(first) {
		t.Errorf("disks %q after one of three is deleted", left)
	}
	w.agent.failing("RemoveContainer", errors.New("device or resource busy"))
	if _, err := w.Delete(t.Context(), "kept", ""); err != nil {
		t.Errorf("delete: %v", err)
	}
	if got := w.vm.attached(); !slices.Equal(got, left) {
		t.Errorf("disks %q of a container that the guest has not let go, want %q", got, left)
	}
	w.agent.failing("RemoveContainer", nil)
	if _, err := w.Create(t.Context(), w.request(t, "next", "")); err != nil {
		t.Errorf("a container afterwards: %v", err)
	}
}

// writableImage is a file with just as much of ext4 as a plan reads.
func writableImage(t *testing.T, dir string) string {
	t.Helper()
	const size = 1 << 20
	path := filepath.Join(dir, "rwlayer.img")
	image := make([]byte, size)
	super := image[1024:]
	super[0x38], super[0x39] = 0x53, 0xEF
	super[0x18] = 2 // blocks of 4 KiB
	super[0x05] = size / 4096 >> 8
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
