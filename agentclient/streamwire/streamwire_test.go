package streamwire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/containerd/errdefs"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var longID = strings.Repeat("x", 128)

func TestHelloOnTheWire(t *testing.T) {
	for _, c := range []struct {
		hello Hello
		wire  string
	}{
		{Hello{Stdin, "c", ""}, "45565331 00 00 0002 63 00"},
		{Hello{Stdout, "ab", "e"}, "45565331 01 00 0004 6162 00 65"},
		{Hello{Stderr, longID, longID}, "45565331 02 00 0101 " + strings.Repeat("78", 128) + "00" + strings.Repeat("78", 128)},
	} {
		var out bytes.Buffer
		if err := WriteHello(&out, c.hello); err != nil || !bytes.Equal(out.Bytes(), unhex(t, c.wire)) {
			t.Errorf("%+v: %x, %v; want %s", c.hello, out.Bytes(), err, c.wire)
		}
		out.WriteString("what follows")
		got, err := ReadHello(iotest.OneByteReader(&out))
		if err != nil || got != c.hello || out.String() != "what follows" {
			t.Errorf("read %+v, %v, left %q", got, err, out.String())
		}
	}
}

func TestHelloThatDoesNotFitIsNotSent(t *testing.T) {
	for _, h := range []Hello{{}, {Container: "a\x00b"}, {Container: "a", Exec: "\x00"}, {Container: longID + "x", Exec: longID}, {Stream: 3, Container: "a"}} {
		var out bytes.Buffer
		if err := WriteHello(&out, h); !errors.Is(err, errdefs.ErrInvalidArgument) || out.Len() > 0 {
			t.Errorf("%+v: %v, %d bytes", h, err, out.Len())
		}
	}
}

func TestHelloThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"nothing":           {"", io.EOF},
		"half a head":       {"455653", io.ErrUnexpectedEOF},
		"half a name":       {"45565331 00 00 0003 63 00", io.ErrUnexpectedEOF},
		"no name":           {"45565331 00 00 0003", io.ErrUnexpectedEOF},
		"magic":             {"45565332 00 00 0002 63 00", ErrMalformed},
		"stream":            {"45565331 03 00 0002 63 00", ErrMalformed},
		"not zero":          {"45565331 00 01 0002 63 00", ErrMalformed},
		"long, by its head": {"45565331 00 00 0102", ErrMalformed},
		"without a zero":    {"45565331 00 00 0001 63", ErrMalformed},
		"two zeros":         {"45565331 00 00 0003 63 00 00", ErrMalformed},
		"no container":      {"45565331 00 00 0002 00 63", ErrMalformed},
		"empty name":        {"45565331 00 00 0000", ErrMalformed},
	} {
		if h, err := ReadHello(bytes.NewReader(unhex(t, c.wire))); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v, want %v", name, h, err, c.want)
		}
	}
}

func TestAnswerOnTheWire(t *testing.T) {
	for name, c := range map[string]struct {
		refusal error
		wire    string
		class   error
		text    string
	}{
		"the stream follows": {nil, "00 00 0000", nil, ""},
		"not known":          {fmt.Errorf("no c: %w", errdefs.ErrNotFound), "05 00 000f" + hex.EncodeToString([]byte("no c: not found")), errdefs.ErrNotFound, "no c"},
		"taken":              {errdefs.ErrAlreadyExists, "06 00 000e" + hex.EncodeToString([]byte("already exists")), errdefs.ErrAlreadyExists, ""},
		"no such stream":     {errdefs.ErrFailedPrecondition, "09 00 0013" + hex.EncodeToString([]byte("failed precondition")), errdefs.ErrFailedPrecondition, ""},
		"no class":           {errors.New("x"), "02 00 0001 78", errdefs.ErrUnknown, "x"},
	} {
		var out bytes.Buffer
		if err := WriteAnswer(&out, c.refusal); err != nil || !bytes.Equal(out.Bytes(), unhex(t, c.wire)) {
			t.Errorf("%s: %x, %v, want %s", name, out.Bytes(), err, c.wire)
		}
		out.WriteString("what follows")
		err := ReadAnswer(iotest.OneByteReader(&out))
		if !errors.Is(err, c.class) || (c.text != "" && !strings.Contains(err.Error(), c.text)) || out.String() != "what follows" {
			t.Errorf("%s: read %v, left %q", name, err, out.String())
		}
	}
	var malformed bytes.Buffer
	if err := WriteAnswer(&malformed, fmt.Errorf("no: %w", ErrMalformed)); err != nil || malformed.Bytes()[0] != 3 {
		t.Errorf("a malformed hello is answered %x, %v", malformed.Bytes(), err)
	}
}

func TestLongRefusalIsCutBetweenCharacters(t *testing.T) {
	for _, text := range []string{strings.Repeat("é", 400), "x" + strings.Repeat("é", 400), strings.Repeat("\xffé", 300)} {
		var out bytes.Buffer
		if err := WriteAnswer(&out, errors.New(text)); err != nil {
			t.Fatal(err)
		}
		if n := out.Len() - 4; n > maxText || n < maxText-utf8.UTFMax || !utf8.Valid(out.Bytes()[4:]) {
			t.Errorf("%d bytes", n)
		}
		if err := ReadAnswer(&out); !errors.Is(err, errdefs.ErrUnknown) {
			t.Error(err)
		}
	}
}

func TestAnswerThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"nothing":              {"", io.ErrUnexpectedEOF},
		"half a head":          {"05 00", io.ErrUnexpectedEOF},
		"half a text":          {"05 00 0002 78", io.ErrUnexpectedEOF},
		"no such code":         {"11 00 0000", ErrMalformed},
		"not zero":             {"00 01 0000", ErrMalformed},
		"long, by its head":    {"05 00 0201", ErrMalformed},
		"a text to no refusal": {"00 00 0001 78", ErrMalformed},
		"not UTF-8":            {"05 00 0001 ff", ErrMalformed},
	} {
		if err := ReadAnswer(bytes.NewReader(unhex(t, c.wire))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// writes counts them.
type writes struct {
	bytes.Buffer
	n int
}

func (w *writes) Write(p []byte) (int, error) {
	w.n++
	return w.Buffer.Write(p)
}

func TestFramesOnTheWire(t *testing.T) {
	var f Frame
	var wire writes
	var sent []byte
	for _, size := range []int{1, 2, fewBytes, MaxFrame} {
		room := f.Room()[:size]
		for i := range room {
			room[i] = byte(i + size)
		}
		sent = append(sent, room...)
		if err := f.Send(&wire, size); err != nil {
			t.Fatal(err)
		}
	}
	if err := SendEnd(&wire); err != nil {
		t.Fatal(err)
	}
	if wire.n != 5 || !bytes.HasPrefix(wire.Bytes(), []byte{0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 3, 0, 0, 0x10, 0}) || !bytes.HasSuffix(wire.Bytes(), make([]byte, 4)) {
		t.Errorf("%d writes, %x", wire.n, wire.Bytes()[:20])
	}
	var got []byte
	for {
		data, err := f.Receive(iotest.HalfReader(&wire))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, data...)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes, want the %d that were sent", len(got), len(sent))
	}
}

func TestFrameOfNoOrTooManyBytesIsNotSent(t *testing.T) {
	var f Frame
	for _, n := range []int{-1, 0, 1, fewBytes + 1, MaxFrame + 1} { // of which one has no room
		if n > 1 {
			f.Room()
		}
		var out bytes.Buffer
		if err := f.Send(&out, n); err == nil || out.Len() > 0 {
			t.Errorf("%d: %v, %d bytes", n, err, out.Len())
		}
	}
}

// TestFrameTakesNoMoreRoomThanItsStreamNeeds: a pod has three streams for each
// process, and most of them are quiet.
func TestFrameTakesNoMoreRoomThanItsStreamNeeds(t *testing.T) {
	var sender, receiver Frame
	var wire bytes.Buffer
	for _, c := range []struct{ send, sending, receiving int }{
		{100, fewBytes, fewBytes}, {fewBytes - 1, fewBytes, fewBytes}, {fewBytes, MaxFrame, fewBytes}, {fewBytes + 1, MaxFrame, MaxFrame}, {1, MaxFrame, MaxFrame},
	} {
		sender.Room()
		if err := sender.Send(&wire, c.send); err != nil {
			t.Fatal(err)
		}
		if data, err := receiver.Receive(&wire); err != nil || len(data) != c.send {
			t.Fatalf("%d bytes: %d, %v", c.send, len(data), err)
		}
		if in, out := len(sender.buf)-header, len(receiver.buf)-header; in != c.sending || out != c.receiving {
			t.Errorf("after %d bytes there is room for %d and %d, want %d and %d", c.send, in, out, c.sending, c.receiving)
		}
	}
}

func TestFrameThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"no end":      {"", io.ErrUnexpectedEOF},
		"half a head": {"0000", io.ErrUnexpectedEOF},
		"half of it":  {"00000002 78", io.ErrUnexpectedEOF},
		"too long":    {"00010001", ErrMalformed},
		"negative":    {"ffffffff", ErrMalformed},
		"the end":     {"00000000", io.EOF},
	} {
		var f Frame
		if data, err := f.Receive(bytes.NewReader(unhex(t, c.wire))); !errors.Is(err, c.want) || data != nil {
			t.Errorf("%s: %q, %v, want %v", name, data, err, c.want)
		}
	}
}

// FuzzHello: what is taken for a hello is one, written the same way.
func FuzzHello(f *testing.F) {
	f.Add(unhex(f, "45565331 01 00 0004 6162 00 65"))
	f.Add(unhex(f, "45565331 00 00 0101"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		h, err := ReadHello(bytes.NewReader(wire))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteHello(&out, h); err != nil || !bytes.HasPrefix(wire, out.Bytes()) {
			t.Errorf("%x read as %+v and written as %x, %v", wire, h, out.Bytes(), err)
		}
	})
}

// FuzzAnswer: whatever a guest answers, the text is bounded and is text.
func FuzzAnswer(f *testing.F) {
	f.Add(unhex(f, "00 00 0000"))
	f.Add(unhex(f, "05 00 0001 78"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		if err := ReadAnswer(bytes.NewReader(wire)); err != nil && (len(err.Error()) > 2*maxText || !utf8.ValidString(err.Error())) {
			t.Errorf("%x: %q", wire, err)
		}
	})
}

// FuzzFrames: whatever comes as frames is read to an end, in pieces that are
// neither empty nor too long and never outside of what came.
func FuzzFrames(f *testing.F) {
	f.Add(unhex(f, "00000001 78 00000002 7879 00000000"))
	f.Add(unhex(f, "00010001"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		var frame Frame
		r := bytes.NewReader(wire)
		for {
			before := r.Len()
			data, err := frame.Receive(r)
			if err != nil {
				return
			}
			at := len(wire) - before + header
			if len(data) < 1 || len(data) > MaxFrame || !bytes.Equal(data, wire[at:at+len(data)]) || r.Len() != before-header-len(data) {
				t.Fatalf("%d bytes at %d of %x", len(data), at, wire)
			}
		}
	})
}
