package vmdk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// TestAGeneratedFileInMemoryIsSealed wants the content, and that nobody who is
// given the file can change it, not even by opening it anew.
func TestAGeneratedFileInMemoryIsSealed(t *testing.T) {
	g := &vmdk.Generated{Data: []byte("content"), Size: 1 << 40}
	f, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	if want := append([]byte("content"), make([]byte, 4096-7)...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q..., %v", got[:16], err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() != g.Size {
		t.Errorf("%v, %v, want %d bytes", info, err, g.Size)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil || stat.Nlink != 0 || stat.Blocks*512 > 1<<16 {
		t.Errorf("%d links, %d blocks, %v, want no name and no memory for zeros", stat.Nlink, stat.Blocks, err)
	}
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for name, f := range map[string]*os.File{"the file": f, "the file, opened anew": again} {
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: write: %v, want %v", name, err, unix.EPERM)
		}
		for _, size := range []int64{0, g.Size + 1} {
			if err := f.Truncate(size); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s: truncate to %d: %v, want %v", name, size, err, unix.EPERM)
			}
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: another seal: %v, want %v", name, err, unix.EPERM)
		}
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v, want close-on-exec", flags, err)
	}
}

func TestAGeneratedFileIsNotCut(t *testing.T) {
	if f, err := (&vmdk.Generated{Data: []byte("content"), Size: 3}).Open(); err == nil || f != nil {
		t.Errorf("%v, %v", f, err)
	}
}

// TestQEMUReadsAGeneratedFileInMemory has it by its descriptor alone.
func TestQEMUReadsAGeneratedFileInMemory(t *testing.T) {
	eachQEMU(t, func(t *testing.T, bin string) {
		f, err := (&vmdk.Generated{Data: bytes.Repeat([]byte{7}, 512), Size: 4096}).Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command(bin+"/qemu-io", "-r", "-f", "raw", "-c", "read -P 7 0 512", "-c", "read -P 0 512 3584", "/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{f}
		if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
