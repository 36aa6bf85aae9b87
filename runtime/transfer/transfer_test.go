package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	types "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// fake is a container with one file, and the streams of a client.
type fake struct {
	calls   []string
	content string
	fail    error
	streams map[string]*fakeStream
}

func (f *fake) Unpack(_ context.Context, id, path string, owners bool, archive io.Reader) error {
	text, err := io.ReadAll(archive)
	f.calls = append(f.calls, fmt.Sprintf("unpack %s %s %v %s", id, path, owners, text))
	return errors.Join(err, f.fail)
}

func (f *fake) Pack(_ context.Context, id, path string, entry bool, archive io.Writer) error {
	f.calls = append(f.calls, fmt.Sprintf("pack %s %s %v", id, path, entry))
	_, err := io.WriteString(archive, f.content)
	return errors.Join(err, f.fail)
}

func (f *fake) claim(id string) (Stream, error) {
	if s := f.streams[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("stream %s: %w", id, errdefs.ErrNotFound)
}

// fakeStream ends only if it is finished.
type fakeStream struct {
	in               *strings.Reader
	out              strings.Builder
	finished, closed bool
}

func (s *fakeStream) Read(_ context.Context, buf []byte) (int, error) {
	n, err := s.in.Read(buf)
	if errors.Is(err, io.EOF) && !s.finished {
		return 0, errors.New("it waits for ever")
	}
	return n, err
}

func (s *fakeStream) Write(_ context.Context, data []byte) (int, error) { return s.out.Write(data) }
func (s *fakeStream) Finish()                                           { s.finished = true }
func (s *fakeStream) Close()                                            { s.closed = true }

// packed is a message as containerd's client packs it, without a prefix.
func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	if m == nil {
		return nil
	}
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

func run(t *testing.T, f *fake, from, to proto.Message) error {
	t.Helper()
	_, err := New(f, f.claim).Transfer(t.Context(), &transferapi.TransferRequest{Source: packed(t, from), Destination: packed(t, to)})
	return errgrpc.ToNative(err)
}

func newFake(in string) *fake {
	return &fake{streams: map[string]*fakeStream{"s": {in: strings.NewReader(in)}}}
}

func TestAStreamIsUnpackedToItsEnd(t *testing.T) {
	f := newFake("archive")
	err := run(t, f, &types.ReadStream{Stream: "s", MediaType: mediaType}, &types.ContainerPath{ContainerID: "c", Path: "/p", PreserveOwnership: true})
	if err != nil || len(f.calls) != 1 || f.calls[0] != "unpack c /p true archive" || !f.streams["s"].closed {
		t.Errorf("%q, %v, closed %v", f.calls, err, f.streams["s"].closed)
	}
}

func TestAPathIsPackedIntoAStream(t *testing.T) {
	f := newFake("")
	f.content = "archive"
	err := run(t, f, &types.ContainerPath{ContainerID: "c", Path: "/p", NoWalk: true}, &types.WriteStream{Stream: "s"})
	if s := f.streams["s"]; err != nil || f.calls[0] != "pack c /p true" || s.out.String() != "archive" || !s.closed {
		t.Errorf("%q, %v, %q, closed %v", f.calls, err, s.out.String(), s.closed)
	}
}

// TestFailuresHaveTheirClassAndAreNoMissingService: a client tells by the class
// that there is no such service at all.
func TestFailuresHaveTheirClassAndAreNoMissingService(t *testing.T) {
	path, in, out := &types.ContainerPath{ContainerID: "c", Path: "/p"}, &types.ReadStream{Stream: "s"}, &types.WriteStream{Stream: "s"}
	for name, c := range map[string]struct {
		from, to proto.Message
		fail     error
		class    func(error) bool
	}{
		"nothing":            {nil, nil, nil, errdefs.IsInvalidArgument},
		"an image":           {&types.ImageStore{Name: "i"}, path, nil, errdefs.IsInvalidArgument},
		"two paths":          {path, path, nil, errdefs.IsInvalidArgument},
		"two streams":        {in, out, nil, errdefs.IsInvalidArgument},
		"another media":      {&types.ReadStream{Stream: "s", MediaType: "text/plain"}, path, nil, errdefs.IsInvalidArgument},
		"no path":            {in, &types.ContainerPath{ContainerID: "c"}, nil, errdefs.IsInvalidArgument},
		"no container":       {&types.ContainerPath{Path: "/p"}, out, nil, errdefs.IsInvalidArgument},
		"no such stream":     {&types.ReadStream{Stream: "t"}, path, nil, errdefs.IsNotFound},
		"nothing there":      {path, out, errdefs.ErrNotFound, errdefs.IsNotFound},
		"no room":            {in, path, errdefs.ErrResourceExhausted, errdefs.IsResourceExhausted},
		"an agent of Kata's": {in, path, errdefs.ErrNotImplemented, errdefs.IsNotImplemented},
	} {
		f := newFake("")
		f.fail = c.fail
		if err := run(t, f, c.from, c.to); !c.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
