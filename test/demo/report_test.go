package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
)

var update = flag.Bool("update", false, "write the golden files")

func sample() *outcome {
	return &outcome{
		id: "demo-1", image: "example.test/image:latest", tree: "/src/erofsvm",
		hostKernel: "6.1.0-9-amd64", guestKernel: "6.12.9-cloud-amd64", took: 4321 * time.Millisecond,
		trace: &harness.Trace{
			ID: "demo-1", Accelerator: "tcg", Strategy: "merged", Reason: "2 plain layers, one fsmeta",
			Disks: []harness.TraceDisk{
				{Role: "upper", Driver: "raw", Path: "/src/erofsvm/.build/run/demo/root/9/rwlayer.img", Address: "02/00", Bytes: 64 << 20},
				{Role: "layers", Driver: "vmdk", Extents: []harness.TraceExtent{{Path: "/src/erofsvm/.build/cache/fsmeta.erofs", Sectors: 8}}, Address: "02/01", ReadOnly: true, Bytes: 3 << 19},
			},
			Descriptor: "# Disk DescriptorFile\nRW 8 FLAT \"/src/erofsvm/.build/cache/fsmeta.erofs\" 0\n",
			Phases: []harness.TracePhase{
				{Name: "attach", Start: 3_000_000, Duration: 40_000},
				{Name: "boot", Start: 1_000, Duration: 2_999_000},
				{Name: "plan", Start: 1_000, Duration: 9_000},
				{Name: "run", Start: 3_100_000, Duration: 900_000},
			},
		},
	}
}

// TestReportIsAsPeopleReadIt against testdata/report.golden; -update writes it.
func TestReportIsAsPeopleReadIt(t *testing.T) {
	var text bytes.Buffer
	if err := sample().report(&screen{w: &text}); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/report.golden"
	if *update {
		if err := os.WriteFile(golden, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text.Bytes(), want) {
		t.Errorf("got:\n%s\nwant:\n%s", text.Bytes(), want)
	}
}

func TestReportFailsOnLeftovers(t *testing.T) {
	o := sample()
	o.left = []string{"mount /somewhere"}
	err := o.report(&screen{w: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), "mount /somewhere") {
		t.Errorf("error %v", err)
	}
}

func TestKernelIsFoundInTheOutput(t *testing.T) {
	for output, want := range map[string]string{
		"hello\nkernel: 6.12.9-cloud-amd64\n": "6.12.9-cloud-amd64",
		"  Kernel       6.18.1 #1 SMP\n":      "6.18.1",
		"nothing of it\n":                     "not said by the container",
	} {
		if got := kernelIn(output); got != want {
			t.Errorf("%q: %q, want %q", output, got, want)
		}
	}
}

// TestLinesComeWhole: two streams share the writer, and no line is torn.
func TestLinesComeWhole(t *testing.T) {
	var text bytes.Buffer
	w := (&screen{w: &text}).indented("| ")
	for _, part := range []string{"a", "b\nc", "\n", "\nlast"} {
		if _, err := w.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	w.flush()
	if want := "| ab\n| c\n| \n| last\n"; text.String() != want {
		t.Errorf("%q, want %q", text.String(), want)
	}
}
