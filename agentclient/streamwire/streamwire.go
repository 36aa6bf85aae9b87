// Package streamwire encodes the messages of docs/streams-wire.md, in which the
// standard streams of a process travel between the shim and the agent: the
// hello of the host, the answer of the guest, and frames.
//
// It is messages only, for both ends: it opens no connection, starts no
// goroutine, and sets no deadline. Functions may be called from any goroutine; a
// Frame belongs to one at a time. What comes from the other end is not trusted:
// lengths are checked before anything is read for them, and what is not by the
// page is ErrMalformed.
package streamwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// Feature is what an agent that speaks this has among its extra_features.
	Feature = "erofsvm.streams/1"

	// Port is the vsock port of the guest.
	Port = 1027

	// HelloTimeout is how long the guest waits for a whole hello.
	HelloTimeout = 5 * time.Second

	maxName = 257 // two ids of 128 bytes and the zero between them
	maxText = 512
)

const magic = "EVS1"

// ErrMalformed is the other end not keeping to the page. The connection is of
// no more use then.
var ErrMalformed = fmt.Errorf("malformed message of a stream: %w", errdefs.ErrInvalidArgument)

// Kind says which stream of a process.
type Kind byte

// The streams of a process. That of a terminal is Stdin and Stdout.
const (
	Stdin Kind = iota
	Stdout
	Stderr
)

// String is the name of the stream, as in stdio(3).
func (k Kind) String() string {
	switch k {
	case Stdin:
		return "stdin"
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return fmt.Sprintf("stream %d", byte(k))
}

// Hello is how the host says which stream a connection is for.
type Hello struct {
	Stream    Kind
	Container string
	Exec      string // "" for the container's own process
}

// WriteHello sends h in one write. Ids that do not fit are
// errdefs.ErrInvalidArgument, and nothing is sent.
func WriteHello(w io.Writer, h Hello) error {
	n := len(h.Container) + 1 + len(h.Exec)
	if h.Container == "" || n > maxName || strings.ContainsRune(h.Container+h.Exec, 0) || h.Stream > Stderr {
		return fmt.Errorf("hello for %s of process %.140q of container %.140q: %w", h.Stream, h.Exec, h.Container, errdefs.ErrInvalidArgument)
	}
	msg := append(make([]byte, 0, 8+n), magic...)
	msg = append(msg, byte(h.Stream), 0)
	msg = binary.BigEndian.AppendUint16(msg, uint16(n))
	msg = append(msg, h.Container...)
	msg = append(msg, 0)
	msg = append(msg, h.Exec...)
	_, err := w.Write(msg)
	return err
}

// ReadHello reads a hello and not a byte more. It is ErrMalformed as soon as
// that is clear; a connection that ends within is io.ErrUnexpectedEOF, one that
// ends before is io.EOF.
func ReadHello(r io.Reader) (Hello, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Hello{}, err
	}
	n := binary.BigEndian.Uint16(head[6:])
	switch {
	case string(head[:4]) != magic:
		return Hello{}, fmt.Errorf("a hello that begins with %q, want %q: %w", head[:4], magic, ErrMalformed)
	case Kind(head[4]) > Stderr:
		return Hello{}, fmt.Errorf("a hello for %s: %w", Kind(head[4]), ErrMalformed)
	case head[5] != 0:
		return Hello{}, fmt.Errorf("a hello with %d where 0 belongs: %w", head[5], ErrMalformed)
	case n > maxName:
		return Hello{}, fmt.Errorf("a hello with a name of %d bytes, at most %d: %w", n, maxName, ErrMalformed)
	}
	name := make([]byte, n)
	if _, err := io.ReadFull(r, name); err != nil {
		return Hello{}, within(err)
	}
	container, exec, found := strings.Cut(string(name), "\x00")
	if !found || container == "" || strings.ContainsRune(exec, 0) {
		return Hello{}, fmt.Errorf("a hello with the name %q: %w", name, ErrMalformed)
	}
	return Hello{Stream: Kind(head[4]), Container: container, Exec: exec}, nil
}

// WriteAnswer sends the guest's answer in one write: that the stream follows if
// refusal is nil, and otherwise the class and the text of refusal.
func WriteAnswer(w io.Writer, refusal error) error {
	var code codes.Code
	var text string
	if refusal != nil {
		st := status.Convert(errgrpc.ToGRPC(refusal))
		if code, text = st.Code(), cut(st.Message()); code == codes.OK || code > codes.Unauthenticated {
			code = codes.Unknown
		}
	}
	msg := []byte{byte(code), 0}
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(text)))
	_, err := w.Write(append(msg, text...))
	return err
}

// cut makes text valid UTF-8 of at most maxText bytes.
func cut(text string) string {
	text = strings.ToValidUTF8(text, "�")
	if len(text) <= maxText {
		return text
	}
	text = text[:maxText]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text
}

// ReadAnswer reads the guest's answer and not a byte more. It is nil if the
// stream follows. A refusal is an error of the class that the guest gave it,
// with the guest's text; an answer that is none is ErrMalformed; a connection
// that ends first is io.ErrUnexpectedEOF.
func ReadAnswer(r io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return within(err)
	}
	code, n := codes.Code(head[0]), binary.BigEndian.Uint16(head[2:])
	if code > codes.Unauthenticated || head[1] != 0 || n > maxText || (code == codes.OK && n > 0) {
		return fmt.Errorf("an answer with code %d, %d where 0 belongs, and a text of %d bytes: %w", head[0], head[1], n, ErrMalformed)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return within(err)
	}
	if code == codes.OK {
		return nil
	}
	if !utf8.Valid(text) {
		return fmt.Errorf("an answer with code %d whose text is not UTF-8: %w", code, ErrMalformed)
	}
	return errgrpc.ToNative(status.Error(code, string(text)))
}

// within is the error of a message whose beginning was read: its end is missing.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
