package shim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
)

// fileBacked is how much of this process's memory files back, in KiB.
func fileBacked(t *testing.T) (kib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name string
		sign int
	}{{"Rss:", 1}, {"Anonymous:", -1}} {
		_, rest, ok := bytes.Cut(text, []byte("\n"+f.name))
		var n int
		if _, err := fmt.Sscan(string(rest), &n); !ok || err != nil {
			t.Fatalf("no %s in %s", f.name, text)
		}
		kib += f.sign * n
	}
	return kib
}

// TestPagesOfTheProgramAreGivenBack: most of what a start needs is not needed again.
func TestPagesOfTheProgramAreGivenBack(t *testing.T) {
	if err := writeInfo(io.Discard); err != nil { // some work to load it for
		t.Fatal(err)
	}
	before := fileBacked(t)
	if err := giveBack(); err != nil {
		t.Fatal(err)
	}
	after := fileBacked(t)
	t.Logf("%d KiB, then %d", before, after)
	if after > before*3/4 {
		t.Errorf("%d KiB of the program are still mapped, of %d", after, before)
	}
}

func TestOnlyTheProgramIsGivenBack(t *testing.T) {
	const program = "/opt/a b/shim"
	for line, want := range map[string]bool{
		"00400000-008b2000 r-xp 00000000 fe:00 99   /opt/a b/shim\n":      true,
		"008b2000-00e27000 r--p 004b2000 fe:00 99   /opt/a b/shim\n":      true,
		"00e27000-00e60000 rw-p 00a27000 fe:00 99   /opt/a b/shim\n":      false,
		"00400000-008b2000 r-xp 00000000 fe:00 99   /usr/lib/libc.so.6\n": false,
		"00400000-008b2000 r--p 00000000 fe:00 99   /else/opt/a b/shim\n": false,
		"7ff26fc0b000-7ff26fc0d000 r-xp 00000000 00:00 0   [vdso]\n":      false,
		"7ff26fc0b000-7ff26fc0d000 r--p 00000000 00:00 0\n":               false,
		"rubbish\n": false,
	} {
		if start, end, ok := readOnly(line, program); ok != want || ok && (start >= end || start&4095 != 0) {
			t.Errorf("%q: %x-%x, %v, want %v", line, start, end, ok, want)
		}
	}
}
