package tail_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"unicode"

	"github.com/erofsvm/erofsvm/hypervisor/internal/tail"
)

func TestBufferKeepsTheEnd(t *testing.T) {
	b := tail.New(16)
	for i := range 1000 {
		if n, err := fmt.Fprintf(b, "line %d\n", i); n == 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := b.Lines(10); got != "ne 998\nline 999" && got != "line 998\nline 999" {
		t.Errorf("kept %q", got)
	}
	if got := b.Lines(1); got != "line 999" {
		t.Errorf("last line is %q", got)
	}
	if _, err := b.Write([]byte(strings.Repeat("x", 100) + "the end")); err != nil {
		t.Fatal(err)
	}
	if got := b.Lines(1); got != "xxxxxxxxxthe end" {
		t.Errorf("kept %q", got)
	}
}

func TestReadFromKeepsTheEndAndSaysWhatEndedIt(t *testing.T) {
	broken := errors.New("broken")
	for want, r := range map[error]io.Reader{
		nil:    strings.NewReader(strings.Repeat("x", 5000) + "\nend\n"),
		broken: io.MultiReader(strings.NewReader(strings.Repeat("x", 5000)+"\nend\n"), iotest.ErrReader(broken)),
	} {
		b := tail.New(100)
		if n, err := io.Copy(b, r); n != 5005 || !errors.Is(err, want) {
			t.Errorf("%d bytes, %v, want 5005 and %v", n, err, want)
		}
		if got := b.Lines(1); got != "end" {
			t.Errorf("%q", got)
		}
	}
}

func TestLinesArePrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"\n\n \r\n":                     "",
		"a\r\n\r\nb\n":                  "a\nb",
		"\x1b[31mred\x1b[0m":            "red",
		"\x1b[2J\x1b[1;1Hgone":          "gone",
		"\x1b]0;title\x07x":             "]0;titlex",
		"bell\a tab\t nul\x00 del\x7f.": "bell tab\t nul del.",
		"\xff\xfe":                      "\uFFFD\uFFFD",
		"\u202eevil":                    "evil",
	} {
		b := tail.New(100)
		if _, err := b.Write([]byte(in)); err != nil {
			t.Fatal(err)
		}
		if got := b.Lines(10); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := tail.New(64)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				fmt.Fprintln(b, "line")
				b.Lines(3)
			}
		})
	}
	all.Wait()
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\n"), 3)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		b := tail.New(32)
		if _, err := b.Write(in); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.Lines(max(0, n%10)) {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Errorf("%q is left of %q", r, in)
			}
		}
	})
}
