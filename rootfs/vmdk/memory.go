package vmdk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// seals keep anybody who is given the file from changing what was checked.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL

// Open is the file in memory, without a name and sealed: Size bytes that nobody
// can change, this process included. It takes memory for Data alone, and is the
// caller's to close.
func (g *Generated) Open() (*os.File, error) {
	if g.Size < int64(len(g.Data)) {
		return nil, fmt.Errorf("generated file: %d bytes of data are more than %d", len(g.Data), g.Size)
	}
	fd, err := unix.MemfdCreate("erofsvm-generated", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("generated file: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "generated file")
	if err := g.fill(f); err != nil {
		return nil, errors.Join(fmt.Errorf("generated file of %d bytes: %w", g.Size, err), f.Close())
	}
	return f, nil
}

func (g *Generated) fill(f *os.File) error {
	if _, err := f.Write(g.Data); err != nil {
		return err
	}
	if err := f.Truncate(g.Size); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return nil
}
