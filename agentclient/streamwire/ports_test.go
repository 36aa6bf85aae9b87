package streamwire

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/containerd/errdefs"
)

func TestAPortArrivesAsItWasSent(t *testing.T) {
	for _, port := range []uint16{1, 80, 65535} {
		var wire bytes.Buffer
		if err := WritePort(&wire, port); err != nil {
			t.Fatal(err)
		}
		wire.WriteString("more")
		if got, err := ReadPort(&wire); err != nil || got != port || wire.String() != "more" {
			t.Errorf("%d arrives as %d, %v, and %q is left", port, got, err, &wire)
		}
	}
}

func TestPortZeroIsNoPort(t *testing.T) {
	var wire bytes.Buffer
	if err := WritePort(&wire, 0); !errors.Is(err, errdefs.ErrInvalidArgument) || wire.Len() != 0 {
		t.Errorf("%v, and %d bytes were sent", err, wire.Len())
	}
}

func TestWhatAsksForNoPortIsRefused(t *testing.T) {
	for text, want := range map[string]error{
		"":             io.EOF,
		"EVP1\x00":     io.ErrUnexpectedEOF,
		"EVP1\x00\x00": ErrMalformed,
		"EVP2\x00\x50": ErrMalformed,
		"GET / ":       ErrMalformed,
	} {
		if port, err := ReadPort(bytes.NewReader([]byte(text))); !errors.Is(err, want) {
			t.Errorf("%q: port %d, %v; want %v", text, port, err, want)
		}
	}
}
