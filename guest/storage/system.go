package storage

import (
	"context"

	"github.com/erofsvm/erofsvm/guest/uevent"
	"github.com/erofsvm/erofsvm/guest/verity"
)

// System is what a Mount needs of the guest. All of it may be called from any
// goroutine and at the same time.
type System struct {
	Disks   Finder
	Modules Modules
	Verity  Verity
}

// Finder returns the device node of a disk or of a partition, and waits for it
// until ctx ends.
type Finder interface {
	Find(ctx context.Context, d uevent.Disk) (string, error)
}

// Modules loads the modules of a stage on demand of package layout, unless that
// is done already. It waits until ctx ends.
type Modules interface {
	Load(ctx context.Context, stage string) error
}

// Verity opens a layer through dm-verity. A layer that does not match its root
// hash gives errdefs.ErrDataLoss.
type Verity interface {
	Open(l verity.Layer) (Protected, error)
}

// Protected is a layer that was opened through dm-verity; whoever opened it
// closes it, after the last mount of it is gone.
type Protected interface {
	Node() string
	// Corrupt returns errdefs.ErrDataLoss once a block of it, or of its hash
	// tree, did not match.
	Corrupt() error
	Close() error
}

// VerityFunc is a function that is a Verity.
type VerityFunc func(l verity.Layer) (Protected, error)

// Open calls the function.
func (f VerityFunc) Open(l verity.Layer) (Protected, error) { return f(l) }
