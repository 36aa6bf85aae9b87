package fio

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
)

var (
	targets  = []Target{{Name: "raw", Device: "/dev/a", Bytes: 1 << 20}, {Name: "vmdk", Device: "/dev/b", Offset: 8192, Bytes: 1 << 20}}
	patterns = []Pattern{{Name: "seq", Block: 1 << 20}, {Name: "rand", Random: true, Block: 4096}}
)

func TestTargetsAreReadInTurn(t *testing.T) {
	text := Jobs(targets, patterns, 2, 1500*time.Millisecond)
	got := regexp.MustCompile(`(?m)^\[(.*)\]$`).FindAllString(text, -1)
	want := []string{"[global]", "[seq.raw.0]", "[seq.vmdk.0]", "[rand.raw.0]", "[rand.vmdk.0]",
		"[seq.vmdk.1]", "[seq.raw.1]", "[rand.vmdk.1]", "[rand.raw.1]"}
	if !slices.Equal(got, want) {
		t.Errorf("jobs %q, want %q", got, want)
	}
	if n := strings.Count(text, "\nstonewall\n"); n != len(want)-1 {
		t.Errorf("%d of %d jobs wait for the one before", n, len(want)-1)
	}
	for _, line := range []string{"runtime=1500ms", "filename=/dev/b\noffset=8192\nsize=1048576\nrw=randread\nbs=4096", "direct=1"} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
}

func TestSamplesKeepTheirNames(t *testing.T) {
	got, err := Parse(`fio: note: something
{"fio version": "fio-3.33", "jobs": [
 {"jobname": "seq.raw.0", "error": 0, "read": {"io_bytes": 10, "bw_bytes": 2000, "iops": 2.5}},
 {"jobname": "rand.vmdk.3", "error": 0, "read": {"io_bytes": 10, "bw_bytes": 4096, "iops": 1}},
 {"jobname": "mixed.file.1", "error": 0, "read": {"io_bytes": 10, "bw_bytes": 2000, "iops": 0.75}, "write": {"io_bytes": 5, "bw_bytes": 1000, "iops": 0.25}}]}
`)
	want := []Sample{{"raw", "seq", 0, 2000, 2.5}, {"vmdk", "rand", 3, 4096, 1}, {"file", "mixed", 1, 3000, 1}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAJobThatFailedIsNoSample(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"no object":     "fio: file not found",
		"cut off":       `{"jobs": [`,
		"no jobs":       `{"jobs": []}`,
		"another's job": `{"jobs": [{"jobname": "x", "read": {"io_bytes": 1}}]}`,
		"an error":      `{"jobs": [{"jobname": "seq.raw.0", "error": 5, "read": {"io_bytes": 1}}]}`,
		"nothing read":  `{"jobs": [{"jobname": "seq.raw.0", "read": {"io_bytes": 0}}]}`,
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestFioTakesTheJobs holds both formats against fio itself, on the host.
func TestFioTakesTheJobs(t *testing.T) {
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	fio := tree.Tool("fio", "root", "usr", "bin", "fio")
	if _, err := os.Stat(fio); err != nil {
		t.Skipf("test/setup/tools.sh fio has not been run, which only the benchmark needs: %v", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 2<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	targets := slices.Clone(targets)
	for i := range targets {
		targets[i].Device = file
	}
	jobs := filepath.Join(dir, "jobs")
	// The filesystem may know no direct reads.
	patterns := append(slices.Clone(patterns), Pattern{Name: "mixed", Random: true, Block: 4096, Writes: 30})
	text := strings.Replace(Jobs(targets, patterns, 2, 20*time.Millisecond), "direct=1", "direct=0", 1)
	if err := os.WriteFile(jobs, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "rw=randrw\nrwmixwrite=30\n") || !slices.Contains(Args(jobs, patterns[:2]), "--readonly") {
		t.Errorf("%q for\n%s", Args(jobs, patterns[:2]), text)
	}
	out, err := exec.CommandContext(t.Context(), fio, Args(jobs, patterns)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	samples, err := Parse(string(out))
	if err != nil {
		t.Fatal(err)
	}
	if len(samples) != 12 || samples[0].Target != "raw" || samples[0].Pattern != "seq" || samples[0].BytesPerSecond <= 0 || samples[2].PerSecond <= 0 {
		t.Errorf("%+v", samples)
	}
}
