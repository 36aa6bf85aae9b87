package hostfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestFilesystemsOfTheKernelAreRefusedByName(t *testing.T) {
	for path, want := range map[string]string{"/proc/self": "proc", "/sys/kernel": "sysfs", "/": ""} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = Refuse(fd, path)
		unix.Close(fd)
		if want == "" && err != nil || want != "" && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), path+" is on the "+want)) {
			t.Errorf("%s: %v", path, err)
		}
		if want != "" && !slices.Contains(Types(), want) {
			t.Errorf("%s is not among the types", want)
		}
	}
}
