// Package verity opens layers through dm-verity: what the kernel reads of them
// is compared with a hash tree, whose root hash is all that is trusted.
//
// Devices owns the device-mapper devices that it opened, by name and by number,
// and one goroutine that reports blocks that do not match; it starts with the
// first device and ends with Stop. Its methods and those of Device may be called
// from any goroutine. The modules have to be loaded already. The package mounts
// nothing, computes no hash and never writes to a disk; a block that does not
// match is an error of the read that met it, never a panic or a restart.
package verity

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/uevent"
)

// ErrMismatch is a layer that does not match its root hash. It comes with
// errdefs.ErrDataLoss.
var ErrMismatch = errors.New("dm-verity root hash mismatch")

// Tree says where the hash tree of a layer is and what it must add up to.
type Tree struct {
	RootHash   string // lower-case hexadecimal digits, 64 or 128
	HashOffset uint64 // of the superblock, in bytes from the start of the layer
}

// Layer is a layer to open.
type Layer struct {
	Container string      // whose it is, for names and reports
	Disk      uevent.Disk // where it is, likewise
	Node      string      // its device node
	Tree
}

// Devices are the open devices.
type Devices struct {
	log *slog.Logger

	mu      sync.Mutex
	open    map[uint64]*Device // by number
	events  *uevent.Events     // nil before the first device, and after Stop
	watcher sync.WaitGroup
}

// New returns Devices that report to log.
func New(log *slog.Logger) *Devices {
	return &Devices{log: log, open: map[uint64]*Device{}}
}

// Device is a layer that was opened; the caller closes it.
type Device struct {
	owner  *Devices
	name   string
	number uint64
	layer  Layer

	limit    limit // with owner.mu held, like reported
	reported bool  // the log says that it is corrupt
}

// Node is the device node. devtmpfs names it by its minor number (drivers/md/dm.c,
// alloc_dev).
func (dev *Device) Node() string {
	return filepath.Join("/dev", fmt.Sprintf("dm-%d", unix.Minor(dev.number)))
}

// Corrupt returns ErrMismatch once a block that was read did not match, be it of
// the layer or of its hash tree.
func (dev *Device) Corrupt() error {
	if state, err := status(dev.name); err != nil || !corruptState(state) {
		return nil
	}
	return fmt.Errorf("disk %s: %w: a block does not match, the layer or its hash tree is corrupt: %w",
		dev.layer.Disk, ErrMismatch, errdefs.ErrDataLoss)
}

// Open makes a read-only device of the layer and reads its first block, so that
// a wrong root hash shows here. On an error nothing is left.
func (d *Devices) Open(l Layer) (*Device, error) {
	fail := func(err error) error { return fmt.Errorf("open disk %s through dm-verity: %w", l.Disk, err) }
	if err := d.watch(); err != nil {
		return nil, fail(err)
	}
	root, err := hex.DecodeString(l.RootHash)
	if err != nil {
		return nil, fail(fmt.Errorf("root hash %.140q: %w: %w", l.RootHash, err, errdefs.ErrInvalidArgument))
	}
	disk, err := os.Open(l.Node)
	if err != nil {
		return nil, fail(err)
	}
	defer disk.Close()
	number, err := deviceNumber(disk)
	if err != nil {
		return nil, fail(err)
	}
	t, err := readTree(disk, l.HashOffset, len(root))
	if err != nil {
		return nil, fail(err)
	}
	dev, err := d.create(l)
	if err != nil {
		return nil, fail(err)
	}
	if err := dev.start(t, number); err != nil {
		return nil, fail(errors.Join(err, dev.Close()))
	}
	return dev, nil
}

// deviceNumber is how the device mapper is told of a disk: unlike the name, the
// number of an open device is nobody else's.
func deviceNumber(disk *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: disk.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device", disk.Name())
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

func (d *Devices) create(l Layer) (*Device, error) {
	name := deviceName(l)
	number, err := createDevice(name)
	if err != nil {
		return nil, err
	}
	dev := &Device{owner: d, name: name, number: number, layer: l}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[number] = dev
	return dev, nil
}

// deviceName is the name of a layer's device. The kernel takes 127 bytes
// (DM_NAME_LEN) and no slash.
func deviceName(l Layer) string {
	id := l.Container
	if len(id) > 80 {
		sum := sha256.Sum256([]byte(id))
		id = id[:63] + "-" + hex.EncodeToString(sum[:8])
	}
	return fmt.Sprintf("%s-%s-%d", id, strings.ReplaceAll(l.Disk.Source, "/", "."), l.Disk.Partition)
}

// start gives the device its table and reads the first block through it.
func (dev *Device) start(t tree, disk string) error {
	if err := loadTable(dev.name, t.sectors(), t.target(disk, dev.layer.RootHash)); err != nil {
		return err
	}
	if err := resume(dev.name); err != nil {
		return err
	}
	err := readFirst(dev.Node(), t.dataBlock)
	if err != nil && dev.Corrupt() != nil {
		return fmt.Errorf("%w: the first block does not match %s: either the hash is wrong or the layer is corrupt: %w",
			ErrMismatch, dev.layer.RootHash, errdefs.ErrDataLoss)
	}
	return err
}

// readFirst reads the first block and no other: what else the kernel would read
// ahead is checked when it is wanted.
func readFirst(node string, size uint64) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return &os.PathError{Op: "fadvise", Path: node, Err: err}
	}
	_, err = f.ReadAt(make([]byte, size), 0)
	return err
}

// Close removes the device. One that is mounted, or open, gives EBUSY and stays
// as it is; one that is gone is no error.
func (dev *Device) Close() error {
	corrupt := dev.unreported() // the event may be still to be read
	if err := removeDevice(dev.name); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	if corrupt {
		dev.log(time.Now())
	}
	dev.owner.mu.Lock()
	defer dev.owner.mu.Unlock()
	delete(dev.owner.open, dev.number)
	return nil
}

// Stop ends the reports. Devices that are open stay so.
func (d *Devices) Stop() {
	d.mu.Lock()
	if d.events != nil {
		_ = d.events.Close()
		d.events = nil
	}
	d.mu.Unlock()
	d.watcher.Wait()
}
