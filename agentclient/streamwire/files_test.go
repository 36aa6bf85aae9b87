package streamwire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRequestsArriveAsTheyWereSent(t *testing.T) {
	for _, want := range []Request{
		{Operation: Unpack, Container: "c", Path: "/tmp", Owners: true},
		{Operation: Pack, Container: strings.Repeat("c", 128), Path: strings.Repeat("p", 4096), Entry: true},
		{Operation: Forward, Container: "c", Path: "0", Mode: 0o660, User: 1, Group: 1<<32 - 1},
		{Operation: Pack, Container: "c"},
		{Operation: Fetch, Container: "c", Path: "3"},
		{Operation: Remove, Container: "c", Path: "3/..old"},
	} {
		var wire bytes.Buffer
		if err := WriteRequest(&wire, want); err != nil {
			t.Fatal(err)
		}
		wire.WriteString("more")
		got, err := ReadRequest(&wire)
		if err != nil || got != want || wire.String() != "more" {
			t.Errorf("%+v, %v, and %q is left; want %+v", got, err, &wire, want)
		}
	}
}

func TestRequestsThatDoNotFitAreNotSent(t *testing.T) {
	for _, r := range []Request{
		{}, {Container: "c", Operation: 5}, {Container: strings.Repeat("c", 129)}, {Container: "c\x00"},
		{Container: "c", Path: strings.Repeat("p", 4097)}, {Container: "c", Path: "a\x00b"},
	} {
		var wire bytes.Buffer
		if err := WriteRequest(&wire, r); !errors.Is(err, errdefs.ErrInvalidArgument) || wire.Len() != 0 {
			t.Errorf("%.60v: %v, %d bytes", r, err, wire.Len())
		}
	}
}

func TestWhatIsNoRequestIsRefused(t *testing.T) {
	var good bytes.Buffer
	if err := WriteRequest(&good, Request{Operation: Pack, Container: "c", Path: "/p"}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"another magic":     func(b []byte) []byte { b[3] = '2'; return b },
		"another operation": func(b []byte) []byte { b[4] = 5; return b },
		"another flag":      func(b []byte) []byte { b[5] = 4; return b },
		"no container":      func(b []byte) []byte { b[19] = 0; return b },
		"a long container":  func(b []byte) []byte { b[18] = 1; return b },
		"a long path":       func(b []byte) []byte { b[20] = 0x20; return b },
		"a zero in it":      func(b []byte) []byte { b[len(b)-1] = 0; return b },
	} {
		if r, err := ReadRequest(bytes.NewReader(change(bytes.Clone(good.Bytes())))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for n := range good.Len() {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if _, err := ReadRequest(bytes.NewReader(good.Bytes()[:n])); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func FuzzReadRequest(f *testing.F) {
	var good bytes.Buffer
	if err := WriteRequest(&good, Request{Operation: Forward, Container: "c", Path: "0", Mode: 0o666}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Fuzz(func(t *testing.T, wire []byte) {
		r, err := ReadRequest(bytes.NewReader(wire))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteRequest(&again, r); err != nil || !bytes.HasPrefix(wire, again.Bytes()) {
			t.Errorf("%+v: %v", r, err)
		}
	})
}
