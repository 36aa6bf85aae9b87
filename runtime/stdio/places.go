package stdio

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// place is a stream's place, taken apart.
type place struct {
	text   string // as containerd wrote it, "" for none
	scheme string // "path", "file", "binary", "binary-v2" or "remote"
	path   string // absolute, for all but "remote"
	id     string // for "remote"
	uri    *url.URL
}

func parsePlace(text string) (place, error) {
	p := place{text: text}
	if text == "" || strings.HasPrefix(text, "/") {
		p.scheme, p.path = "path", text
		return p, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return p, fmt.Errorf("%q: %w: %w", text, err, errdefs.ErrInvalidArgument)
	}
	p.uri, p.path = u, u.Path
	switch u.Scheme {
	case "fifo":
		p.scheme = "path"
	case "file", "binary", "binary-v2":
		p.scheme = u.Scheme
	case "ttrpc+unix", "grpc+unix":
		// The address is the shim's own: the client is who connects.
		p.scheme, p.path, p.id = "remote", "", u.Query().Get("streaming_id")
		if p.id == "" {
			return p, fmt.Errorf("%q has no streaming_id: %w", text, errdefs.ErrInvalidArgument)
		}
		return p, nil
	default:
		return p, fmt.Errorf("%q: streams of scheme %q are not known, use a fifo, file://, binary:// or a stream of the CRI: %w", text, u.Scheme, errdefs.ErrNotImplemented)
	}
	if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path || u.Host != "" {
		return p, fmt.Errorf("%q names no absolute path: %w", text, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// openInput returns nil for no input.
func (s *IO) openInput(text string, o Options) (input, error) {
	p, err := parsePlace(text)
	if err != nil || p.text == "" {
		return nil, err
	}
	switch p.scheme {
	case "remote":
		stream, err := s.claim(p, o)
		if err != nil {
			return nil, err
		}
		return remoteInput{stream}, nil
	case "path":
		return s.openFifoInput(p.path)
	}
	return nil, fmt.Errorf("%q: input comes from a fifo or a stream of the CRI: %w", text, errdefs.ErrInvalidArgument)
}

// openOutputs opens both, as they may share a file or a logging program.
func (s *IO) openOutputs(ctx context.Context, p Paths, o Options) error {
	stdout, err := parsePlace(p.Stdout)
	if err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	streams := []struct {
		name  string
		place place
		read  func(Guest, context.Context, []byte) (int, error)
	}{{"stdout", stdout, Guest.ReadStdout}}
	if !p.Terminal {
		stderr, err := parsePlace(p.Stderr)
		if err != nil {
			return fmt.Errorf("stderr: %w", err)
		}
		streams = append(streams, streams[0])
		streams[1].name, streams[1].place, streams[1].read = "stderr", stderr, Guest.ReadStderr
	}
	var program *logger
	for i, st := range streams {
		out := output{name: st.name + " " + st.place.text, read: st.read}
		switch st.place.scheme {
		case "binary", "binary-v2":
			// One program takes both, and the URI of the first says which.
			if program == nil {
				if program, err = startLogger(ctx, st.place.uri, o); err == nil {
					s.onClose(program.close)
				}
			}
			if err == nil {
				out.open = program.output(i)
			}
		case "remote":
			out.open, err = s.openRemoteOutput(st.place, o)
		default:
			out.open, err = s.openFileOutput(st.place)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
		s.outputs = append(s.outputs, out)
	}
	return nil
}

// opened is an output that waits for nobody.
func opened(w io.WriteCloser) func(context.Context) (io.WriteCloser, error) {
	return func(context.Context) (io.WriteCloser, error) { return w, nil }
}

func (s *IO) openFileOutput(p place) (func(context.Context) (io.WriteCloser, error), error) {
	if p.text == "" {
		return opened(discard{}), nil
	}
	flags := os.O_WRONLY | os.O_APPEND
	if p.scheme == "file" {
		if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
			return nil, err
		}
		flags |= os.O_CREATE
	}
	info, err := os.Stat(p.path)
	switch {
	case err != nil && flags&os.O_CREATE == 0:
		return nil, err
	case err == nil && info.Mode()&os.ModeNamedPipe != 0:
		return s.ahead(func(ctx context.Context) (io.WriteCloser, error) { return openFifoOutput(ctx, p.path) }), nil
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s is a directory: %w", p.path, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(p.path, flags|unix.O_NOCTTY, 0o644)
	if err != nil {
		return nil, err
	}
	s.onClose(func() { f.Close() })
	return opened(f), nil
}

func (s *IO) claim(p place, o Options) (RemoteStream, error) {
	if o.Remote == nil {
		return nil, fmt.Errorf("%q: this shim serves no streams: %w", p.text, errdefs.ErrNotImplemented)
	}
	stream, err := o.Remote.Claim(p.id)
	if err != nil {
		return nil, err
	}
	s.onClose(stream.Close)
	return stream, nil
}

type remoteInput struct{ stream RemoteStream }

func (r remoteInput) read(ctx context.Context, buf []byte) (int, error) {
	return r.stream.Read(ctx, buf)
}
func (r remoteInput) finish() { r.stream.Finish() }

func (s *IO) openRemoteOutput(p place, o Options) (func(context.Context) (io.WriteCloser, error), error) {
	stream, err := s.claim(p, o)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (io.WriteCloser, error) { return remoteOutput{ctx, stream}, nil }, nil
}

type remoteOutput struct {
	ctx    context.Context
	stream RemoteStream
}

func (r remoteOutput) Write(data []byte) (int, error) { return r.stream.Write(r.ctx, data) }

func (r remoteOutput) Close() error {
	r.stream.Close()
	return nil
}
