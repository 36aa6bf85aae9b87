package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// benchBlock is the length of a request of qemu-img bench, in bytes.
const benchBlock = 4096

// blockLayer measures what QEMU itself takes for a small read, without a guest,
// whose emulation would hide it: the large layer is read once from front to back
// out of the host's page cache.
func (b *bench) blockLayer(ctx context.Context, disks []disk) error {
	t := b.report.Table("processor time of QEMU's block layer to read 4 KiB (qemu-img bench)", "µs")
	for _, d := range disks {
		t.Row(titles[d.name], against(d.name))
	}
	for round := range often*b.runs + 1 { // the first fills the page cache
		for i, d := range disks {
			if round%2 == 1 {
				d = disks[len(disks)-1-i]
			}
			took, err := b.qemuImgBench(ctx, d)
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.name, err)
			}
			if round > 0 {
				t.Row(titles[d.name], "").Add(took)
			}
		}
	}
	return nil
}

// qemuImgBench reads the part of a disk that is of interest, and says how many
// microseconds of processor time a request took.
func (b *bench) qemuImgBench(ctx context.Context, d disk) (float64, error) {
	path := d.layout.Path
	if d.layout.Driver == rootfs.DriverVMDK {
		var err error
		if path, err = vmdk.WriteDisk(b.dir, d.name+".vmdk", d.layout.Extents, d.layout.Generated); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	const requests = noise / benchBlock
	program := filepath.Join(filepath.Dir(b.tree.QEMU()), "qemu-img")
	cmd := exec.CommandContext(ctx, program, "bench", "-f", string(d.layout.Driver), "-t", "writeback", "-d", "1",
		"-s", strconv.Itoa(benchBlock), "-c", strconv.Itoa(requests), "-o", strconv.FormatInt(d.offset, 10), path)
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("qemu-img bench: %w\n%s", err, text)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return float64(took) / float64(time.Microsecond) / requests, nil
}
