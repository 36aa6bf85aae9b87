package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
)

// report says what the run was. It fails if something is left behind.
func (o *outcome) report(out *screen) error {
	var b strings.Builder
	o.guest(&b)
	o.disks(&b)
	o.descriptor(&b)
	o.phases(&b)
	fmt.Fprintf(&b, "\nContainer\n  exit code %d after %.1f s\n", o.code, o.took.Seconds())
	if len(o.left) == 0 {
		fmt.Fprintf(&b, "  left behind: nothing\n")
	}
	out.printf("%s\n", b.String())
	if len(o.left) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(o.left, "\n  "))
	}
	return nil
}

func (o *outcome) guest(b *strings.Builder) {
	fmt.Fprintf(b, "\nGuest\n  kernel       %s   (the host's is %s)\n  accelerator  %s\n",
		o.guestKernel, o.hostKernel, o.trace.Accelerator)
}

func (o *outcome) disks(b *strings.Builder) {
	fmt.Fprintf(b, "\nDisks\n")
	for _, d := range o.trace.Disks {
		access := "read-write"
		if d.ReadOnly {
			access = "read-only"
		}
		fmt.Fprintf(b, "  %-7s %-5s %-10s %9s  at %-6s %s\n", d.Role, d.Driver, access, mebibytes(d.Bytes), d.Address, o.source(d))
	}
	fmt.Fprintf(b, "  strategy: %s (%s)\n", o.trace.Strategy, o.trace.Reason)
}

// source is the file behind a disk.
func (o *outcome) source(d harness.TraceDisk) string {
	if d.Path == "" {
		return fmt.Sprintf("%d extents, see below", len(d.Extents))
	}
	return o.short(d.Path)
}

func (o *outcome) descriptor(b *strings.Builder) {
	if o.trace.Descriptor == "" {
		return
	}
	fmt.Fprintf(b, "\nVMDK descriptor (QEMU gets it, and the files it names, as descriptors that are open already)\n")
	for line := range strings.Lines(o.trace.Descriptor) {
		fmt.Fprintf(b, "  | %s\n", strings.ReplaceAll(strings.TrimRight(line, "\n"), o.tree+string(filepath.Separator), ""))
	}
}

// phases draws the steps as bars on one time axis.
func (o *outcome) phases(b *strings.Builder) {
	const width = 40
	list := slices.Clone(o.trace.Phases)
	slices.SortStableFunc(list, func(x, y harness.TracePhase) int {
		return cmp.Or(cmp.Compare(x.Start, y.Start), cmp.Compare(y.Duration, x.Duration))
	})
	var end int64 = 1
	for _, p := range list {
		end = max(end, p.Start+p.Duration)
	}
	fmt.Fprintf(b, "\nPhases %36s\n", "start       took")
	for _, p := range list {
		from := int(max(0, p.Start) * width / end)
		to := max(from+1, int((p.Start+p.Duration)*width/end))
		bar := strings.Repeat(" ", from) + strings.Repeat("=", min(to, width)-min(from, width-1))
		line := fmt.Sprintf("  %-20s %9s %9s  %s", p.Name, milliseconds(p.Start), milliseconds(p.Duration), bar)
		fmt.Fprintln(b, strings.TrimRight(line, " "))
	}
}

func milliseconds(us int64) string {
	return fmt.Sprintf("%.0f ms", float64(us)/float64(time.Millisecond/time.Microsecond))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
