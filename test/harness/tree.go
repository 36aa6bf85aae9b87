package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Releases of containerd that the shim must work under, the first being the one
// that people see in the demo.
var Releases = []string{"2.4.2", "2.3.7", "2.2.9"}

// Tree knows where things lie in the source tree and in its build folder.
type Tree struct {
	Root string // the folder of go.mod, absolute
}

// FindTree looks for the module root upwards from the working directory.
func FindTree() (Tree, error) {
	dir, err := os.Getwd()
	if err != nil {
		return Tree{}, fmt.Errorf("find the source tree: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return Tree{Root: dir}, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return Tree{}, errors.New("find the source tree: no go.mod above the working directory; run inside the checkout")
		}
		dir = up
	}
}

// Build is a path below the folder of everything that is made.
func (t Tree) Build(elem ...string) string {
	return filepath.Join(append([]string{t.Root, ".build"}, elem...)...)
}

// Tool is a path below what test/setup/tools.sh brought. EROFSVM_TOOLS names
// another folder of the same shape.
func (t Tree) Tool(elem ...string) string {
	if dir := os.Getenv("EROFSVM_TOOLS"); dir != "" {
		return filepath.Join(append([]string{dir}, elem...)...)
	}
	return filepath.Join(append([]string{t.Build("tools")}, elem...)...)
}

// Containerd is the daemon of one release.
func (t Tree) Containerd(release string) string { return t.Tool("containerd", release, "containerd") }

// Ctr is the client that belongs to the daemon of one release.
func (t Tree) Ctr(release string) string { return t.Tool("containerd", release, "ctr") }

// MkfsErofs is the mkfs.erofs that containerd and the shim use.
func (t Tree) MkfsErofs() string { return t.Tool("erofs-utils", "bin", "mkfs.erofs") }

// MakeRun makes a new directory for files of a run, which the caller removes.
func (t Tree) MakeRun(name string) (string, error) {
	if err := os.MkdirAll(t.Build("run"), 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(t.Build("run"), name)
}

// QEMU is the emulator that the shim starts.
func (t Tree) QEMU() string { return t.Tool("qemu", "usr", "bin", "qemu-system-x86_64") }

// VhostDeviceVsock is the daemon of the vhost-user vsock backend.
func (t Tree) VhostDeviceVsock() string {
	return t.Tool("vhost-device-vsock", "usr", "bin", "vhost-device-vsock")
}

// Virtiofsd is the daemon that shows directories of the host to a guest.
func (t Tree) Virtiofsd() string { return t.Tool("virtiofsd", "usr", "libexec", "virtiofsd") }

// Shim is the program under test.
func (t Tree) Shim() string { return t.Build("bin", "containerd-shim-erofsvm-v2") }

// Kernel and Initrd are the guest image.
func (t Tree) Kernel() string { return t.Build("guest", "vmlinux") }

// Initrd is the guest's initramfs.
func (t Tree) Initrd() string { return t.Build("guest", "initrd.img") }

// Need says which of the files is missing, and what makes it.
func Need(target string, files ...string) error {
	for _, file := range files {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is missing: make %s", file, target)
		} else if err != nil {
			return err
		}
	}
	return nil
}
