package rootfs

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Class says why a mount list was refused, for callers and logs that have to
// tell refusals apart without reading their text.
type Class string

const (
	// ClassInvalid is a list that no correct snapshotter makes.
	ClassInvalid Class = "invalid"
	// ClassUnknown is a mount type, transform or option that is not known
	// here and may matter, so it is not ignored.
	ClassUnknown Class = "unknown"
	// ClassHostMounted is a root filesystem that containerd has mounted on
	// the host already, so there are no layers to hand over.
	ClassHostMounted Class = "host-mounted"
	// ClassHostUpper is a writable layer in a directory of the host.
	ClassHostUpper Class = "host-upper"
	// ClassMkfs is a writable image that is still to be made.
	ClassMkfs Class = "mkfs"
	// ClassVerity is a layer protected by dm-verity.
	ClassVerity Class = "dm-verity"
	// ClassIDMap is a snapshot with mapped owners.
	ClassIDMap Class = "id-map"
	// ClassNoLayers is a root filesystem without any image layer.
	ClassNoLayers Class = "no-layers"
	// ClassNoOverlay is a list of layers that nothing joins.
	ClassNoOverlay Class = "no-overlay"
	// ClassNoDevices is an image whose data lie in files that the mount does
	// not name.
	ClassNoDevices Class = "no-devices"
)

// Refusal is the error for a mount list that is not planned. It wraps
// errdefs.ErrInvalidArgument for lists that are wrong and
// errdefs.ErrNotImplemented for lists that are right but not handled.
type Refusal struct {
	Class  Class
	Mount  int    // index into the list, -1 if it is about the list as a whole
	Type   string // of that mount
	Source string // of that mount
	Option string // the option at fault, "" if it is none
	Reason string // what is wrong, and what to change where something can be
	Cause  error  // what was found underneath, nil if nothing was
}

// Error names the mount, the option and the reason.
func (r *Refusal) Error() string {
	where := "rootfs mounts"
	if r.Mount >= 0 {
		where = fmt.Sprintf("rootfs mount %d (%s %s)", r.Mount, printable(r.Type), printable(r.Source))
	}
	if r.Option != "" {
		where += ", option " + printable(r.Option)
	}
	if r.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", where, r.Reason, r.Cause)
	}
	return where + ": " + r.Reason
}

// Unwrap gives the error class of containerd, and the cause if there is one.
func (r *Refusal) Unwrap() []error {
	var kind error = errdefs.ErrNotImplemented
	if r.Class == ClassInvalid {
		kind = errdefs.ErrInvalidArgument
	}
	if r.Cause != nil {
		return []error{kind, r.Cause}
	}
	return []error{kind}
}

// printable quotes a string of the mount list for an error, cut to a length
// that a log line can bear.
func printable(s string) string {
	const longest = 256
	if len(s) > longest {
		return fmt.Sprintf("%q and %d bytes more", s[:longest], len(s)-longest)
	}
	return fmt.Sprintf("%q", s)
}
