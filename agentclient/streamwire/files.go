package streamwire

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// FilesFeature is what an agent that speaks docs/files-wire.md has among its
	// extra_features.
	FilesFeature = "erofsvm.files/1"
	// CopiesFeature is what it has besides if it knows the operations on the copies
	// of the host's files, Fetch and Remove.
	CopiesFeature = "erofsvm.copies/1"

	// FilesPort is the vsock port of the guest for it.
	FilesPort = 1029

	// MaxFetch is how much of a file Fetch returns at most, in bytes: its end.
	MaxFetch = 64 << 10

	maxContainer = 128
	maxPath      = 4096
)

const filesMagic = "EVF1"

// Operation says what a connection to FilesPort is for.
type Operation byte

// The operations of docs/files-wire.md.
const (
	Unpack Operation = iota
	Pack
	Forward
	Fetch
	Remove
)

// String is the name of the operation, as on the page.
func (o Operation) String() string {
	switch o {
	case Unpack:
		return "unpack"
	case Pack:
		return "pack"
	case Forward:
		return "forward"
	case Fetch:
		return "fetch"
	case Remove:
		return "remove"
	}
	return fmt.Sprintf("operation %d", byte(o))
}

const (
	flagEntry  = 1
	flagOwners = 2
)

// Request is how the host says what it wants.
type Request struct {
	Operation Operation
	Container string
	Path      string
	Entry     bool // pack: only the entry itself
	Owners    bool // unpack: keep them
	Mode      uint32
	User      uint32
	Group     uint32
}

const requestHead = 4 + 1 + 1 + 4 + 4 + 4 + 2 + 2

// WriteRequest sends r in one write. What does not fit is
// errdefs.ErrInvalidArgument, and nothing is sent.
func WriteRequest(w io.Writer, r Request) error {
	if err := r.check(errdefs.ErrInvalidArgument); err != nil {
		return err
	}
	var flags byte
	if r.Entry {
		flags |= flagEntry
	}
	if r.Owners {
		flags |= flagOwners
	}
	msg := append(make([]byte, 0, requestHead+len(r.Container)+len(r.Path)), filesMagic...)
	msg = append(msg, byte(r.Operation), flags)
	for _, n := range []uint32{r.Mode, r.User, r.Group} {
		msg = binary.BigEndian.AppendUint32(msg, n)
	}
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(r.Container)))
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(r.Path)))
	msg = append(append(msg, r.Container...), r.Path...)
	_, err := w.Write(msg)
	return err
}

// ReadRequest reads a request and not a byte more. It is ErrMalformed as soon as
// that is clear; a connection that ends within is io.ErrUnexpectedEOF, one that
// ends before is io.EOF.
func ReadRequest(r io.Reader) (Request, error) {
	var head [requestHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Request{}, err
	}
	flags := head[5]
	container, path := int(binary.BigEndian.Uint16(head[18:])), int(binary.BigEndian.Uint16(head[20:]))
	switch {
	case string(head[:4]) != filesMagic:
		return Request{}, fmt.Errorf("a request that begins with %q, want %q: %w", head[:4], filesMagic, ErrMalformed)
	case flags&^(flagEntry|flagOwners) != 0:
		return Request{}, fmt.Errorf("a request with the flags %#x: %w", flags, ErrMalformed)
	case container > maxContainer || path > maxPath:
		return Request{}, fmt.Errorf("a request with names of %d and %d bytes, at most %d and %d: %w", container, path, maxContainer, maxPath, ErrMalformed)
	}
	names := make([]byte, container+path)
	if _, err := io.ReadFull(r, names); err != nil {
		return Request{}, within(err)
	}
	req := Request{
		Operation: Operation(head[4]), Entry: flags&flagEntry != 0, Owners: flags&flagOwners != 0,
		Mode: binary.BigEndian.Uint32(head[6:]), User: binary.BigEndian.Uint32(head[10:]), Group: binary.BigEndian.Uint32(head[14:]),
		Container: string(names[:container]), Path: string(names[container:]),
	}
	return req, req.check(ErrMalformed)
}

// check says, as an error of the class, what cannot be in a request.
func (r *Request) check(class error) error {
	switch {
	case r.Operation > Remove:
		return fmt.Errorf("a request for %s: %w", r.Operation, class)
	case r.Container == "" || len(r.Container) > maxContainer || strings.ContainsRune(r.Container, 0):
		return fmt.Errorf("a request for container %.140q: %w", r.Container, class)
	case len(r.Path) > maxPath || strings.ContainsRune(r.Path, 0):
		return fmt.Errorf("a request for a path of %d bytes, at most %d and none of them zero: %w", len(r.Path), maxPath, class)
	}
	return nil
}
