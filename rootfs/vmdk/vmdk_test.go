package vmdk_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const gib = 1 << 30 / 512 // in sectors

func TestDescriptorIsExactlyWhatQEMUReads(t *testing.T) {
	got, err := vmdk.Descriptor([]vmdk.Extent{
		{Path: "/cache/index.fsmeta", Sectors: 16},
		{Path: "/snapshots/1/layer.erofs", Sectors: 5*gib + 8},
		{Path: "/snapshots/a layer, with: odd='signs' und Ümlauten.erofs", Sectors: 2 * gib, Offset: 3 * gib},
	})
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/descriptor.golden"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWhatQEMUWouldMisreadIsRefused(t *testing.T) {
	long := func(n int) string { return "/" + strings.Repeat("x", n-1) }
	for name, c := range map[string]struct {
		extents []vmdk.Extent
		want    error
	}{
		"nothing":                {nil, vmdk.ErrExtent},
		"511 bytes":              {[]vmdk.Extent{{Path: long(511), Sectors: 1}}, nil},
		"512 bytes":              {[]vmdk.Extent{{Path: long(512), Sectors: 1}}, vmdk.ErrPath},
		"relative":               {[]vmdk.Extent{{Path: "layer", Sectors: 1}}, vmdk.ErrPath},
		"protocol":               {[]vmdk.Extent{{Path: "nbd:localhost:1", Sectors: 1}}, vmdk.ErrPath},
		"no path":                {[]vmdk.Extent{{Sectors: 1}}, vmdk.ErrPath},
		"quotation mark":         {[]vmdk.Extent{{Path: `/a"b`, Sectors: 1}}, vmdk.ErrPath},
		"line feed":              {[]vmdk.Extent{{Path: "/a\nRW 1 FLAT \"/etc/shadow\" 0", Sectors: 1}}, vmdk.ErrPath},
		"carriage return":        {[]vmdk.Extent{{Path: "/a\r", Sectors: 1}}, vmdk.ErrPath},
		"zero byte":              {[]vmdk.Extent{{Path: "/a\x00", Sectors: 1}}, vmdk.ErrPath},
		"no UTF-8":               {[]vmdk.Extent{{Path: "/\xff", Sectors: 1}}, vmdk.ErrPath},
		"name of a backing file": {[]vmdk.Extent{{Path: "/parentFileNameHint=", Sectors: 1}}, vmdk.ErrPath},
		"no sector":              {[]vmdk.Extent{{Path: "/a"}}, vmdk.ErrExtent},
		"negative length":        {[]vmdk.Extent{{Path: "/a", Sectors: -1}}, vmdk.ErrExtent},
		"negative offset":        {[]vmdk.Extent{{Path: "/a", Sectors: 1, Offset: -1}}, vmdk.ErrExtent},
		"length past int64":      {[]vmdk.Extent{{Path: "/a", Sectors: 1 << 62}}, vmdk.ErrExtent},
		"a descriptor of 1 MiB":  {repeat(vmdk.Extent{Path: long(500), Sectors: 1}, 2100), vmdk.ErrTooLong},
		"lines without end":      {[]vmdk.Extent{{Path: "/a", Sectors: 1 << 50}}, vmdk.ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := vmdk.Descriptor(c.extents)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == nil {
				checkText(t, text, c.extents)
			} else if text != nil {
				t.Errorf("%d bytes beside %v", len(text), err)
			}
			if err != nil && len(c.extents) == 1 && !strings.Contains(err.Error(), fmt.Sprintf("%q", c.extents[0].Path)) {
				t.Errorf("%v does not name the path", err)
			}
		})
	}
}

func repeat(e vmdk.Extent, n int) []vmdk.Extent {
	out := make([]vmdk.Extent, n)
	for i := range out {
		out[i] = e
	}
	return out
}

// checkText reads a descriptor back, line by line, and wants the extents.
func checkText(t *testing.T, text []byte, want []vmdk.Extent) {
	t.Helper()
	if !bytes.HasSuffix(text, []byte("\n")) || bytes.Contains(text, []byte("\n\n")) || len(text) >= 1<<20 {
		t.Errorf("a blank line, no last line end, or %d bytes", len(text))
	}
	var got []vmdk.Extent
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "RW ")
		if !ok {
			continue
		}
		var e vmdk.Extent
		before, after, _ := strings.Cut(rest, ` FLAT "`)
		path, offset, _ := strings.Cut(after, `" `)
		if _, err := fmt.Sscanf(before+" "+offset, "%d %d\n", &e.Sectors, &e.Offset); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if e.Path = path; e.Sectors > 2*gib {
			t.Errorf("line %q is longer than 2 GiB", line)
		}
		if n := len(got) - 1; n >= 0 && len(got) > 0 && got[n].Path == e.Path && got[n].Offset+got[n].Sectors == e.Offset {
			got[n].Sectors += e.Sectors
			continue
		}
		got = append(got, e)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("read back %v, want %v", got, want)
	}
}

func TestWriteAppearsWholeAndLeavesNothingElse(t *testing.T) {
	dir := t.TempDir()
	extents := []vmdk.Extent{{Path: "/a", Sectors: 1}}
	for range 2 { // the second replaces the first
		path, err := vmdk.Write(dir, "layers.vmdk", extents)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := vmdk.Descriptor(extents)
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %q (%v), want %q", path, got, err, want)
		}
		extents[0].Sectors++
	}
	if _, err := vmdk.Write(dir, "bad.vmdk", nil); err == nil {
		t.Error("a descriptor of nothing was written")
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := vmdk.Write(dir, "taken", extents); err == nil {
		t.Error("a directory was replaced")
	}
	for _, name := range []string{"", ".", "..", "a/b", "/a"} {
		if _, err := vmdk.Write(dir, name, extents); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("%v are there, want layers.vmdk and taken", entries)
	}
	if _, err := vmdk.Write(filepath.Join(dir, "none"), "x", extents); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want %v", err, os.ErrNotExist)
	}
}

func TestAGeneratedFileLiesBesideTheDescriptor(t *testing.T) {
	dir := t.TempDir()
	extents := []vmdk.Extent{{Sectors: 1}, {Path: "/a", Sectors: 2}, {Sectors: 3, Offset: 1}}
	if _, err := vmdk.Write(dir, "layers.vmdk", extents); !errors.Is(err, vmdk.ErrPath) {
		t.Errorf("extents without a path: %v, want %v", err, vmdk.ErrPath)
	}
	path, err := vmdk.WriteDisk(dir, "layers.vmdk", extents, &vmdk.Generated{Data: []byte("data"), Size: 2048})
	if err != nil {
		t.Fatal(err)
	}
	data := path + ".data"
	if got, err := os.ReadFile(data); err != nil || !bytes.Equal(got, append([]byte("data"), make([]byte, 2044)...)) {
		t.Errorf("%s has %q (%v)", data, got, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	checkText(t, text, []vmdk.Extent{{Path: data, Sectors: 1}, {Path: "/a", Sectors: 2}, {Path: data, Sectors: 3, Offset: 1}})
	if extents[0].Path != "" {
		t.Error("the caller's extents were changed")
	}
	if _, err := vmdk.WriteDisk(dir, "x", extents, &vmdk.Generated{Data: []byte("data"), Size: 3}); err == nil {
		t.Error("a file shorter than its data was made")
	}
	if _, err := vmdk.WriteDisk(dir, "..", extents, &vmdk.Generated{}); err == nil {
		t.Error("a name that is none was taken")
	}
}

// FuzzDescriptor wants what is written to read back as it was meant.
func FuzzDescriptor(f *testing.F) {
	f.Add("/a", int64(1), int64(0), "/b", int64(5*gib), int64(7))
	f.Add("/a\nRW 1 FLAT \"/b\" 0", int64(1), int64(0), `/"`, int64(1), int64(0))
	f.Add(" /a", int64(0), int64(-1), "/%s", int64(1), int64(1<<52))
	f.Fuzz(func(t *testing.T, path1 string, sectors1, offset1 int64, path2 string, sectors2, offset2 int64) {
		if path1 == path2 {
			return // may be one range in two
		}
		extents := []vmdk.Extent{{Path: path1, Sectors: sectors1, Offset: offset1}, {Path: path2, Sectors: sectors2, Offset: offset2}}
		text, err := vmdk.Descriptor(extents)
		if err != nil {
			return
		}
		checkText(t, text, extents)
	})
}
