package vmdk_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// eachQEMU runs the test with the oldest QEMU that is supported and with the
// current one. The tools lie in the given directory.
func eachQEMU(t *testing.T, test func(t *testing.T, bin string)) {
	for _, version := range []string{"qemu7", "qemu"} {
		t.Run(version, func(t *testing.T) {
			test(t, filepath.Dir(erofstest.Tool(t, version+"/usr/bin/qemu-img")))
		})
	}
}

// sectors is how long QEMU takes the disk with the descriptor text to be.
func sectors(t *testing.T, bin, dir, text string) int64 {
	t.Helper()
	path := put(t, dir, "fact.vmdk", []byte(text))
	defer os.Remove(path)
	out, err := exec.Command(bin+"/qemu-img", "info", "--output", "json", "-f", "vmdk", path).CombinedOutput()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err != nil || json.Unmarshal(out, &info) != nil {
		t.Logf("qemu-img: %v\n%s", err, out)
		return -1
	}
	return info.Size / 512
}

// TestFactsThatThisPackageGuardsAgainst has descriptors that Descriptor never
// makes, and what QEMU makes of them without a word. If one of these fails with
// a new QEMU, the guard may go.
func TestFactsThatThisPackageGuardsAgainst(t *testing.T) {
	eachQEMU(t, func(t *testing.T, bin string) {
		dir := t.TempDir()
		layer := put(t, dir, "layer", pattern("layer", 8*512))
		good, err := vmdk.Descriptor([]vmdk.Extent{{Path: layer, Sectors: 8}})
		if err != nil {
			t.Fatal(err)
		}
		head, line := string(good[:bytes.Index(good, []byte("RW "))]), fmt.Sprintf("RW 8 FLAT %q 0\n", layer)
		if head+line != string(good) {
			t.Fatalf("descriptor is\n%s", good)
		}
		long := "/" + strings.Repeat("x", 511)
		for name, c := range map[string]struct {
			text string
			want int64 // sectors, -1 if QEMU refuses it
		}{
			"as it is made":              {head + line, 8},
			"two extents":                {head + line + line, 16},
			"a comment between":          {head + line + "# comment\n" + line, 16},
			"a blank line counts twice":  {head + "\n" + line, 16},
			"a blank line in between":    {head + line + "\n" + line, 24},
			"ZERO is passed over":        {head + line + "RW 8 ZERO\n", 8},
			"a path of 512 bytes":        {head + line + fmt.Sprintf("RW 8 FLAT \"%s\" 0\n", long), -1},
			"a path with a quotation":    {head + line + "RW 8 FLAT \"/a\"b\" 0\n", -1},
			"a path with a line end":     {head + line + "RW 8 FLAT \"/a\nb\" 0\n", -1},
			"a path that is two extents": {head + fmt.Sprintf("RW 8 FLAT \"%s\" 0\n", layer+"\" 0\nRW 8 FLAT \""+layer), 16},
			"longer than its file":       {head + fmt.Sprintf("RW 80 FLAT %q 0\n", layer), 80},
			"behind the end of its file": {head + fmt.Sprintf("RW 8 FLAT %q 800\n", layer), 8},
			"longer than 2 GiB":          {head + fmt.Sprintf("RW 8388608 FLAT %q 0\n", layer), 8388608},
			"behind the first MiB":       {head + line + strings.Repeat("# "+strings.Repeat("x", 1021)+"\n", 1024) + line, 8},
			"without an offset":          {head + fmt.Sprintf("RW 8 FLAT %q\n", layer), -1},
			"a directory":                {head + fmt.Sprintf("RW 8 FLAT %q 0\n", dir), -1},
			"a missing file":             {head + fmt.Sprintf("RW 8 FLAT %q 0\n", layer+".none"), -1},
		} {
			t.Run(name, func(t *testing.T) {
				if got := sectors(t, bin, dir, c.text); got != c.want {
					t.Errorf("QEMU sees %d sectors, want %d", got, c.want)
				}
			})
		}
	})
}

// TestFactWhatIsNotInTheFileIsZeros is why the lengths of files are checked before
// QEMU sees them: it says nothing.
func TestFactWhatIsNotInTheFileIsZeros(t *testing.T) {
	eachQEMU(t, func(t *testing.T, bin string) {
		dir := t.TempDir()
		layer := put(t, dir, "layer", bytes.Repeat([]byte{7}, 4*512))
		path, err := vmdk.Write(dir, "layers.vmdk", []vmdk.Extent{{Path: layer, Sectors: 8}, {Path: layer, Sectors: 8, Offset: 8}})
		if err != nil {
			t.Fatal(err)
		}
		out := run(t, bin+"/qemu-io", "-r", "-f", "vmdk", "-c", "read -P 7 0 2048", "-c", "read -P 0 2048 6144", path)
		if !strings.Contains(out, "read 2048/2048") || !strings.Contains(out, "read 6144/6144") ||
			strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io says\n%s", out)
		}
	})
}

// monitor runs QEMU without a machine, with the disk behind drive d, has it
// carry out the commands, and returns what it says. It ends by itself.
func monitor(t *testing.T, bin, file string, extra []*os.File, args []string, commands ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(bin+"/qemu-system-x86_64", append([]string{
		"-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio",
	}, append(args, "-drive", "if=none,id=d,format=vmdk,readonly=on,file="+file)...)...)
	commands = append([]string{`{"execute":"qmp_capabilities"}`}, append(commands, `{"execute":"quit"}`)...)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	cmd.ExtraFiles = extra
	cmd.Dir = t.TempDir() // for a core
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestQueriesOfADiskAreAnswered also shows why extents are RW on a read-only
// disk: those with RDONLY have QEMU abort at the next query.
func TestQueriesOfADiskAreAnswered(t *testing.T) {
	eachQEMU(t, func(t *testing.T, bin string) {
		dir := t.TempDir()
		layer := put(t, dir, "layer", pattern("layer", 8*512))
		path, err := vmdk.Write(dir, "layers.vmdk", []vmdk.Extent{{Path: layer, Sectors: 8}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := monitor(t, bin, path, nil, nil, `{"execute":"query-block"}`)
		if err != nil || !strings.Contains(out, `"virtual-size": 4096`) {
			t.Errorf("%v, QEMU says\n%s", err, out)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		readOnly := put(t, dir, "rdonly.vmdk", bytes.Replace(text, []byte("RW 8"), []byte("RDONLY 8"), 1))
		out, err = monitor(t, bin, readOnly, nil, nil, `{"execute":"query-block"}`)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGABRT {
			t.Errorf("with RDONLY: %v, QEMU says\n%s\nIf it lives now, such extents could be told the truth", err, out)
		}
	})
}

// TestDescriptorAndExtentsCanBeDescriptorsOfFiles hands both over as sets of
// file descriptors, so that no name is looked up by QEMU.
func TestDescriptorAndExtentsCanBeDescriptorsOfFiles(t *testing.T) {
	eachQEMU(t, func(t *testing.T, bin string) {
		dir := t.TempDir()
		layer := put(t, dir, "layer", bytes.Repeat([]byte{7}, 8*512))
		path, err := vmdk.Write(dir, "layers.vmdk", []vmdk.Extent{{Path: "/dev/fdset/1", Sectors: 8}})
		if err != nil {
			t.Fatal(err)
		}
		var files []*os.File
		for _, name := range []string{layer, path} {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files = append(files, f)
			if err := os.Remove(name); err != nil { // the names are of no use
				t.Fatal(err)
			}
		}
		out, err := monitor(t, bin, "/dev/fdset/2", files, []string{"-add-fd", "fd=3,set=1", "-add-fd", "fd=4,set=2"},
			`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io d \"read -P 7 0 4096\""}}`)
		if err != nil || !strings.Contains(out, "read 4096/4096") || strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Errorf("%v, QEMU says\n%s", err, out)
		}
	})
}
