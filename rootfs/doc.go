// Package rootfs turns the mounts that containerd hands over for a container
// into a plan: which host files become which disks, and which of them the
// guest mounts how.
//
// It owns the meaning of a mount list. [Classify] is pure and understands every
// list that a snapshotter is known to make; [Planner.Plan] besides refuses what
// its [Options] have not switched on, opens the files that the list names, reads
// superblocks, and may put a merged index into its cache. Both may be called
// from any goroutine, several at a time. The package never mounts, never writes
// to a file of the snapshotter, and knows neither the VM nor the guest.
//
// Every file is opened once, by package files, and checked, merged and lent to
// the VM by that descriptor. A plan that lends is closed by its owner, and is
// all that keeps a descriptor open.
//
// A mount list is untrusted, and so is every byte of the files it names. What
// is not understood is refused with a [Refusal], and nothing is half done.
package rootfs
