package planview_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
	"github.com/erofsvm/erofsvm/rootfs/planview"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// files are what the lists of these tests name.
type files struct {
	dir, upper string
	layers     []string // oldest first
	protected  string
}

func newFiles(t testing.TB) *files {
	t.Helper()
	f := &files{dir: t.TempDir()}
	for i := range 2 {
		entries := []erofstest.Entry{erofstest.File(fmt.Sprintf("of-%d", i), strings.Repeat("content ", 1000))}
		f.layers = append(f.layers, erofstest.Layer(t, f.dir, fmt.Sprintf("layer-%d.erofs", i), entries, "-U", fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i)))
	}
	f.protected = erofstest.Layer(t, f.dir, "protected.erofs", []erofstest.Entry{erofstest.File("x", "x")}, "-U", "00000000-0000-4000-8000-00000000000f")
	erofstest.Protect(t, f.protected)

	// As much of ext4 as is read of it.
	super := make([]byte, 1<<20)
	copy(super[1024+4:], []byte{0, 1})
	copy(super[1024+0x18:], []byte{2})
	copy(super[1024+0x38:], []byte{0x53, 0xEF})
	f.upper = filepath.Join(f.dir, "rwlayer.img")
	if err := os.WriteFile(f.upper, super, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func erofs(path string, options ...string) rootfs.Mount {
	return rootfs.Mount{Type: "erofs", Source: path, Options: append([]string{"ro", "loop"}, options...)}
}

func overlay(lowers string, options ...string) rootfs.Mount {
	return rootfs.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: append([]string{"lowerdir=" + lowers}, options...)}
}

var writable = []string{
	"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
	"upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work",
}

func (f *files) list(name string) []rootfs.Mount {
	upper := rootfs.Mount{Type: "ext4", Source: f.upper, Options: []string{"rw", "loop"}}
	toBeMade := rootfs.Mount{Type: "mkfs/ext4", Source: f.dir + "/none.img", Options: []string{"rw", "loop", "X-containerd.mkfs.size=67108864"}}
	verity := erofs(f.protected, "X-containerd.dmverity="+f.protected+".dmverity")
	return map[string][]rootfs.Mount{
		"raw":       {toBeMade, erofs(f.layers[0]), overlay("{{ mount 1 }}", writable...)},
		"merged":    {upper, erofs(f.layers[1]), erofs(f.layers[0]), overlay("{{ overlay 1 2 }}", writable...)},
		"read-only": {erofs(f.layers[1]), erofs(f.layers[0]), overlay("{{ overlay 0 1 }}", "ro")},
		"protected": {upper, verity, erofs(f.layers[0]), overlay("{{ overlay 1 2 }}", writable...)},
		"memory":    {erofs(f.layers[0]), overlay("{{ mount 0 }}", "upperdir=/nonexistent/upper", "workdir=/nonexistent/work")},
		"host":      {{Type: "bind", Source: "/somewhere", Options: []string{"rbind", "rw"}}},
	}[name]
}

// run runs the command on a list, with everything switched on.
func run(t testing.TB, f *files, list []rootfs.Mount, args ...string) (string, error) {
	t.Helper()
	input, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{
		"--cache", f.dir + "/cache", "--mkfs-erofs", erofstest.Mkfs(t), "--partitions", "--make-upper", "--memory-upper", "67108864", "--layers", "auto",
	}, args...)
	return command(bytes.NewReader(input), args...)
}

func command(stdin *bytes.Reader, args ...string) (string, error) {
	var out, stray bytes.Buffer
	cmd := planview.NewCommand(rootfs.Options{})
	cmd.SetIn(stdin)
	cmd.SetOut(&out)
	cmd.SetErr(&stray)
	cmd.SetArgs(append([]string{}, args...)) // nil would be those of the test
	err := cmd.Execute()
	return out.String(), errors.Join(err, stated(stray.String()))
}

func stated(s string) error {
	if s == "" {
		return nil
	}
	return fmt.Errorf("on standard error: %s", s)
}

// hash is a name in the cache, or a root hash.
var hash = regexp.MustCompile(`[0-9a-f]{64}`)

func TestPlansAreShownAsInTheGoldenFiles(t *testing.T) {
	f := newFiles(t)
	for _, c := range []struct{ list, output string }{
		{"raw", "text"}, {"raw", "json"}, {"merged", "text"}, {"merged", "json"}, {"merged", "vmdk"}, {"read-only", "text"},
		{"protected", "text"}, {"protected", "json"}, {"protected", "vmdk"}, {"memory", "text"}, {"memory", "json"},
	} {
		t.Run(c.list+" "+c.output, func(t *testing.T) {
			got, err := run(t, f, f.list(c.list), "-o", c.output)
			if err != nil {
				t.Fatal(err)
			}
			got = hash.ReplaceAllString(strings.ReplaceAll(got, f.dir, "DIR"), "HASH")
			got = strings.Replace(got, "made now", "from the cache", 1)
			golden := filepath.Join("testdata", c.list+"."+c.output)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; run with -update and read the diff. Got:\n%s", golden, got)
			}
		})
	}
}

// TestTheDescriptorIsOneForQEMU reads the disk with a partition table that the
// command has written.
func TestTheDescriptorIsOneForQEMU(t *testing.T) {
	f := newFiles(t)
	text, err := run(t, f, f.list("protected"), "-o", "vmdk", "--data", f.dir+"/table")
	if err != nil {
		t.Fatal(err)
	}
	descriptor, raw := f.dir+"/disk.vmdk", f.dir+"/disk.raw"
	if err := os.WriteFile(descriptor, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(erofstest.Tool(t, "qemu/usr/bin/qemu-img"), "convert", "-f", "vmdk", "-O", "raw", descriptor, raw)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	disk, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := os.ReadFile(f.protected)
	if err != nil {
		t.Fatal(err)
	}
	if string(disk[512:520]) != "EFI PART" || !bytes.HasPrefix(disk[1<<20:], layer) {
		t.Error("there is no table in front, or not the layer in partition 1")
	}
}

func TestARefusalIsOneLine(t *testing.T) {
	f := newFiles(t)
	_, err := run(t, f, f.list("host"))
	if !errdefs.IsNotImplemented(err) {
		t.Fatalf("%v, want a refusal", err)
	}
	if line := planview.Line(errors.New("one\n two\t three")); line != "one two three" {
		t.Errorf("%q", line)
	}
}

func TestWrongCallsAreRefused(t *testing.T) {
	f := newFiles(t)
	for name, c := range map[string]struct {
		input string
		args  []string
		says  string
	}{
		"nothing":          {"", nil, "nothing to read"},
		"no JSON":          {"rootfs", nil, "invalid character"},
		"an object":        {`{"rootfs":[]}`, nil, "want [{"},
		"an empty list":    {`[]`, nil, "empty"},
		"an unknown field": {`[{"type":"erofs","path":"/x"}]`, nil, `"path"`},
		"a list and more":  {`[] []`, nil, "behind it"},
		"a huge list":      {`[` + strings.Repeat(" ", 17<<20), nil, "more than"},
		"no such file":     {"", []string{f.dir + "/none"}, "none"},
		"two files":        {"", []string{"a", "b"}, "at most 1"},
		"unknown output":   {"[]", []string{"-o", "yaml"}, `"yaml"`},
		"unknown strategy": {"[]", []string{"--layers", "best"}, `"best"`},
		"relative cache":   {"[]", []string{"--cache", "cache"}, "--cache"},
		"relative data":    {"[]", []string{"-o", "vmdk", "--data", "x"}, "--data"},
		"data unasked":     {"[]", []string{"--data", "/x"}, "--data"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := command(bytes.NewReader([]byte(c.input)), c.args...)
			if err == nil || !strings.Contains(err.Error(), c.says) || out != "" {
				t.Errorf("%q, %v, want an error with %q alone", out, err, c.says)
			}
		})
	}
	if _, err := run(t, f, f.list("raw"), "-o", "vmdk"); err == nil || !strings.Contains(err.Error(), "raw") {
		t.Errorf("descriptor of a raw disk: %v", err)
	}
}

// FuzzRead wants every input refused, or read as what it says.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`[{"type":"erofs","source":"/s/1/layer.erofs","target":"","options":["ro","loop"]}]`))
	f.Add([]byte(`[{"TYPE":"bind","options":null}, {}]`))
	f.Add([]byte(`[{"type":"\u0000\ud800"}]`))
	f.Fuzz(func(t *testing.T, input []byte) {
		mounts, err := planview.Read(bytes.NewReader(input))
		if err != nil {
			return
		}
		again, err := json.Marshal(mounts)
		if err != nil {
			t.Fatal(err)
		}
		same, err := planview.Read(bytes.NewReader(again))
		if err != nil || fmt.Sprint(same) != fmt.Sprint(mounts) {
			t.Errorf("%v and then %v, %v", mounts, same, err)
		}
		_, _ = rootfs.Classify(mounts)
	})
}
