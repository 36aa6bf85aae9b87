package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/containerd/log"

	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

var (
	// ErrFile is wrapped when a file of a disk is not what the disk needs.
	ErrFile = errors.New("file does not fit the disk")
	// ErrFileLimit is wrapped when QEMU may not open as many files as a disk
	// needs.
	ErrFileLimit = errors.New("too many open files")
)

const (
	// handedAtOnce is how many add-fd are under way at a time. QEMU reads the
	// next one while the answer to the last is on its way, and the kernel bounds
	// what is in flight for a process without privileges (unix(7), ETOOMANYREFS).
	handedAtOnce = 32

	// takeBackTimeout bounds the commands that follow an Attach.
	takeBackTimeout = time.Minute

	// maxDescriptor is what QEMU reads of a descriptor (block/vmdk.c,
	// vmdk_open): it would not notice extents behind that.
	maxDescriptor = 1<<20 - 1

	// spareFiles is what QEMU may open beside the files of a disk: queues and
	// interrupts of the device, and what it needs for a moment.
	spareFiles = 64
	// filesPerQueue are the event descriptors of a queue with KVM, of which a
	// disk has one for each processor and a SCSI controller two more.
	filesPerQueue = 2
)

// lend gives QEMU what d is made of, and returns the name under which it can
// open the disk. The caller holds the turn of d.
//
// A set of descriptors is numbered by us, so that it can be taken back even if
// the answer to the command that made it never came. Each holds one file: QEMU
// picks by access mode from a set that holds more (monitor/fds.c,
// monitor_fdset_dup_fd_add).
func (m *Machine) lend(ctx context.Context, d *disk, want hypervisor.Disk) (string, error) {
	if len(want.Files) == 0 {
		return want.Path, nil
	}
	if err := m.roomFor(len(want.Files) + 1); err != nil {
		return "", err
	}
	names, err := m.hand(ctx, d, want.Files, !want.ReadOnly, m.spec.CacheDirect)
	if err != nil {
		return "", err
	}
	if want.Driver == hypervisor.DriverRaw {
		return names[0], nil
	}
	text, err := want.Descriptor(names)
	if err != nil {
		return "", fmt.Errorf("make the descriptor: %w", err)
	}
	if err := checkDescriptor(text, names); err != nil {
		return "", err
	}
	descriptor, err := sealed(text)
	if err != nil {
		return "", fmt.Errorf("keep the descriptor in memory: %w", err)
	}
	defer descriptor.Close()
	// Never O_DIRECT, which a memfd knows only since Linux 6.6.
	if names, err = m.hand(ctx, d, []*os.File{descriptor}, false, false); err != nil {
		return "", err
	}
	return names[0], nil
}

// hand gives QEMU a set for each of the files, and returns their names in the
// same order.
func (m *Machine) hand(ctx context.Context, d *disk, files []*os.File, writable, direct bool) ([]string, error) {
	m.mu.Lock()
	first := m.lastSet + 1
	m.lastSet += int64(len(files))
	m.mu.Unlock()

	names := make([]string, len(files))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(handedAtOnce)
	for i, f := range files {
		set := first + int64(i)
		names[i] = "/dev/fdset/" + strconv.FormatInt(set, 10)
		// Before it is there: a command that times out may have been carried out.
		d.sets = append(d.sets, set)
		group.Go(func() error {
			own, err := reopen(f, writable, direct)
			if err != nil {
				return fmt.Errorf("file %d, %s: %w", i, f.Name(), err)
			}
			defer own.Close()
			return m.proc.monitor.ExecuteWithFile(ctx, "add-fd", map[string]any{"fdset-id": set}, nil, own)
		})
	}
	return names, group.Wait()
}

// takeBack removes the sets of d. What QEMU has opened of them by then, a
// duplicate, stays open in its block nodes. The caller holds the turn of d.
//
// QEMU before 9.1 closes a set's own descriptor only while the guest runs, and
// else when the block node is deleted (monitor/fds.c, monitor_fdset_cleanup).
func (m *Machine) takeBack(ctx context.Context, d *disk) error {
	for len(d.sets) > 0 {
		last := len(d.sets) - 1
		err := m.proc.monitor.Execute(ctx, "remove-fd", map[string]any{"fdset-id": d.sets[last]}, nil)
		if err != nil && !refused(err) { // refused: there is no such set
			return fmt.Errorf("take back descriptors: %w", err)
		}
		d.sets = d.sets[:last]
	}
	return nil
}

// settle ends an Attach: it takes back the sets, of which QEMU has no more use,
// and then gives up the turn of d. A set costs QEMU about as much as an extent,
// so it happens behind the caller's back, one command after the other: those of
// other callers pass in between.
func (m *Machine) settle(ctx context.Context, d *disk) {
	background := func() {
		defer func() { <-d.turn }()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTimeout)
		defer cancel()
		if err := m.takeBack(ctx, d); err != nil && !errors.Is(err, qmp.ErrClosed) {
			log.G(ctx).WithError(err).WithField("disk", d.id).Warn("QEMU keeps descriptors until the disk is detached")
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended || len(d.sets) == 0 {
		<-d.turn // holds what we put there, so this does not wait
		return
	}
	m.tasks.Go(background)
}

// reopen opens what f is anew, with no more access than the disk needs. A mere
// duplicate would share f's open file description: QEMU's locks (fcntl(2),
// "Open file description locks") would be the caller's too and outlive the disk,
// and O_DIRECT, which must match what QEMU asks a set for, would be set for both.
func reopen(f *os.File, writable, direct bool) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var own *os.File
	var openErr error
	// Within Control the descriptor cannot be closed and given to another file.
	if err := raw.Control(func(fd uintptr) { own, openErr = reopenFD(int(fd), f.Name(), writable, direct) }); err != nil {
		return nil, err
	}
	return own, openErr
}

func reopenFD(fd int, name string, writable, direct bool) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return nil, fmt.Errorf("%w: it is not a regular file, nor a block device", ErrFile)
	}
	had, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, err
	}
	flags := unix.O_RDONLY | unix.O_CLOEXEC
	switch access := had & unix.O_ACCMODE; {
	case had&unix.O_PATH != 0, access == unix.O_WRONLY:
		return nil, fmt.Errorf("%w: it is not open for reading", ErrFile)
	case writable && access != unix.O_RDWR:
		return nil, fmt.Errorf("%w: it is open for reading only, and the disk is writable", ErrFile)
	case writable:
		flags = unix.O_RDWR | unix.O_CLOEXEC
	}
	if direct {
		flags |= unix.O_DIRECT
	}
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("%w: RLIMIT_NOFILE of this process is reached: raise LimitNOFILE of the containerd service", ErrFileLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("open it anew: %w", err)
	}
	return os.NewFile(uintptr(own), name), nil
}

// sealed returns a file with the text that nobody can change, QEMU included.
func sealed(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("erofsvm-vmdk", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "descriptor")
	_, err = f.Write(text)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// quoted are the strings of a descriptor; a file stands nowhere but in one.
var quoted = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`"[^"\n]*"?`)
})

// checkDescriptor holds that QEMU opens nothing by path. A backing file is named
// by parentFileNameHint, which QEMU looks for anywhere in the text.
func checkDescriptor(text []byte, names []string) error {
	if len(text) > maxDescriptor {
		return fmt.Errorf("the descriptor has %d bytes, and QEMU reads %d", len(text), maxDescriptor)
	}
	if bytes.Contains(text, []byte("parentFileNameHint")) {
		return errors.New("the descriptor names a backing file")
	}
	known := make(map[string]bool, len(names))
	for _, name := range names {
		known[`"`+name+`"`] = true
	}
	for line := range bytes.Lines(text) {
		for _, s := range quoted().FindAll(line, -1) {
			if !known[string(s)] && !bytes.HasPrefix(line, []byte("createType=")) {
				return fmt.Errorf("the descriptor names %s, which is none of the disk's files", s)
			}
		}
	}
	return nil
}

// roomFor refuses a disk of n files for which QEMU has no descriptors left,
// before any is handed over: QEMU would say that it received none (unix(7):
// what passes the limit is dropped). It needs each twice for a moment.
func (m *Machine) roomFor(n int) error {
	var limit unix.Rlimit
	err := unix.Prlimit(m.Pid(), unix.RLIMIT_NOFILE, nil, &limit)
	var open []os.DirEntry
	if err == nil {
		open, err = os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.Pid()))
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		err = hypervisor.ErrGone
	}
	if err != nil {
		return fmt.Errorf("look how many files QEMU has open: %w", err)
	}
	need := uint64(2*n + filesPerQueue*(m.spec.VCPUs+2) + spareFiles)
	if had := uint64(len(open)); had+need > limit.Cur {
		return fmt.Errorf("%w: QEMU has %d, the disk can need %d more, and its RLIMIT_NOFILE is %d: raise LimitNOFILE of the containerd service",
			ErrFileLimit, had, need, limit.Cur)
	}
	return nil
}
