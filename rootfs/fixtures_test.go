package rootfs_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// capture is one mount list as it reached a shim.
type capture struct {
	Containerd  string         `json:"containerd"`
	Snapshotter string         `json:"snapshotter_config"`
	Image       string         `json:"image"`
	Claims      string         `json:"claims"`
	Rootfs      []rootfs.Mount `json:"rootfs"`
}

// captures reads testdata/rootfs-mounts.jsonl.gz: lists that containerd 2.2.9
// and 2.4.2 made with every claim of mounts and every setting of the EROFS
// snapshotter.
func captures(t testing.TB) []capture {
	t.Helper()
	f, err := os.Open("testdata/rootfs-mounts.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []capture
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c capture
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// summary is a layout in a line.
func summary(l *rootfs.Layout) string {
	var s strings.Builder
	switch u := l.Upper; {
	case u == nil:
		s.WriteString("read-only")
	case u.HostDir != "":
		s.WriteString("memory")
	case u.Format != nil:
		fmt.Fprintf(&s, "ext4 of %d bytes to be made %v", u.Format.Size, u.Options)
	default:
		fmt.Fprintf(&s, "ext4 %v", u.Options)
	}
	if l.Upper != nil {
		s.WriteString(" mkdir")
		for _, m := range l.Upper.Mkdirs {
			fmt.Fprintf(&s, " %s:%04o", m.Path, m.Mode)
		}
	}
	fmt.Fprintf(&s, " over %d", len(l.Lowers))
	for _, lower := range l.Lowers {
		if len(lower.Devices) > 0 {
			fmt.Fprintf(&s, " (index of %d)", len(lower.Devices))
		}
	}
	if n := protected(l); n > 0 {
		fmt.Fprintf(&s, " (%d with dm-verity)", n)
	}
	return s.String()
}

func protected(l *rootfs.Layout) int {
	n := 0
	for _, lower := range l.Lowers {
		if lower.Verity != "" {
			n++
		}
	}
	return n
}

func TestEveryCaptureIsPlannedOrRefusedForItsReason(t *testing.T) {
	var got bytes.Buffer
	for _, c := range captures(t) {
		fmt.Fprintf(&got, "%s | %s | %s | %s: ", c.Containerd, c.Snapshotter, c.Image, c.Claims)
		layout, err := rootfs.Classify(c.Rootfs)
		var refusal *rootfs.Refusal
		if err != nil {
			if !errors.As(err, &refusal) {
				t.Fatalf("%v is not a Refusal", err)
			}
			fmt.Fprintf(&got, "refused, %s\n", refusal.Class)
			continue
		}
		fmt.Fprint(&got, summary(layout))
		// The files are not there, so that this ends at a refusal or at them.
		_, err = rootfs.NewPlanner(rootfs.Options{}).Plan(deadline(t), c.Rootfs)
		if errors.As(err, &refusal) {
			fmt.Fprintf(&got, "; by default refused, %s", refusal.Class)
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v, want a refusal or %v", err, os.ErrNotExist)
		}
		fmt.Fprintln(&got)
		checkNothingIsLost(t, c.Rootfs, layout)
	}
	golden(t, "testdata/rootfs-mounts.golden", got.Bytes())
}

// checkNothingIsLost wants the images of the layout to be those of the list,
// the layers in its order.
func checkNothingIsLost(t *testing.T, mounts []rootfs.Mount, layout *rootfs.Layout) {
	t.Helper()
	var in, out []string
	for _, m := range mounts {
		switch m.Type {
		case "ext4", "mkfs/ext4":
			in = append(in, m.Source)
		case "erofs":
			in = append(in, m.Source)
			for _, o := range m.Options {
				if device, ok := strings.CutPrefix(o, "device="); ok {
					in = append(in, device)
				}
			}
		}
	}
	if layout.Upper != nil && layout.Upper.Path != "" {
		out = append(out, layout.Upper.Path)
	}
	for _, l := range layout.Lowers {
		out = append(append(out, l.Path), l.Devices...)
	}
	if strings.Join(in, "\n") != strings.Join(out, "\n") {
		t.Errorf("images in the list:\n%s\nin the layout:\n%s", strings.Join(in, "\n"), strings.Join(out, "\n"))
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		write(t, path, got)
	}
	if want := read(t, path); !bytes.Equal(got, want) {
		t.Errorf("%s differs; run with -update and read the diff. Got:\n%s", path, got)
	}
}
