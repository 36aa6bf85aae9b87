package verity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/uevent"
)

// corruption is the key under which the kernel names a block that does not
// match (drivers/md/dm-verity-target.c, verity_handle_err). It does so at most
// 100 times for a device.
const corruption = "DM_VERITY_ERR_BLOCK_NR"

// kinds are the kernel's numbers for what a block holds
// (drivers/md/dm-verity.h, enum verity_block_type).
var kinds = map[string]string{"0": "data", "1": "hashes"}

// watch starts to report, unless that is done already.
func (d *Devices) watch() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.events != nil {
		return nil
	}
	events, err := uevent.Listen()
	if err != nil {
		return fmt.Errorf("listen for corrupt blocks: %w", err)
	}
	d.events = events
	d.watcher.Go(func() { d.report(events) })
	return nil
}

// report logs the blocks that the kernel names, until the socket is closed.
func (d *Devices) report(events *uevent.Events) {
	for {
		event, err := events.Next(context.Background())
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			d.log.Error("corrupt blocks are not reported any more", "error", err.Error())
			return
		}
		if event.Lost {
			d.reportLost(time.Now())
		} else if kind, block, number, ok := corrupt(event); ok {
			d.reportBlock(kind, block, number, time.Now())
		}
	}
}

// corrupt reads an event that names a corrupt block, "<type>,<block>".
func corrupt(event uevent.Event) (kind string, block, number uint64, ok bool) {
	what, where, _ := strings.Cut(event.Get(corruption), ",")
	kind, ok = kinds[what]
	if !ok {
		return "", 0, 0, false
	}
	block, errBlock := strconv.ParseUint(where, 10, 64)
	major, errMajor := strconv.ParseUint(event.Get("MAJOR"), 10, 32)
	minor, errMinor := strconv.ParseUint(event.Get("MINOR"), 10, 32)
	if errors.Join(errBlock, errMajor, errMinor) != nil {
		return "", 0, 0, false
	}
	return kind, block, unix.Mkdev(uint32(major), uint32(minor)), true
}

// reportBlock logs a corrupt block of one of our devices, if the kernel says the
// same when asked: an event can be forged.
func (d *Devices) reportBlock(kind string, block, number uint64, now time.Time) {
	d.mu.Lock()
	dev := d.open[number]
	d.mu.Unlock()
	if dev != nil && dev.Corrupt() != nil {
		dev.log(now, "block", block, "holds", kind)
	}
}

// reportLost logs the layers of which an event may have been among those that
// the kernel dropped.
func (d *Devices) reportLost(now time.Time) {
	d.mu.Lock()
	open := slices.Collect(maps.Values(d.open))
	d.mu.Unlock()
	for _, dev := range open {
		if dev.unreported() {
			dev.log(now)
		}
	}
}

// unreported says that a block did not match and that the log does not say so.
func (dev *Device) unreported() bool {
	dev.owner.mu.Lock()
	reported := dev.reported
	dev.owner.mu.Unlock()
	return !reported && dev.Corrupt() != nil
}

// log says that blocks do not match. The host knows the layer by disk and
// partition.
func (dev *Device) log(now time.Time, where ...any) {
	dev.owner.mu.Lock()
	leftOut, ok := dev.limit.take(now)
	dev.reported = dev.reported || ok
	dev.owner.mu.Unlock()
	if !ok {
		return
	}
	args := []any{"container", dev.layer.Container, "disk", dev.layer.Disk.Source, "partition", dev.layer.Disk.Partition}
	dev.owner.log.Error("a block of a layer does not match its hash tree: reads of it fail",
		append(append(args, where...), "left_out", leftOut)...)
}

// reportEvery is the least time between two lines about one layer.
const reportEvery = time.Second

// limit lets a line through now and then, and counts the others.
type limit struct {
	next    time.Time
	leftOut int
}

// take says whether a line may be written now, and how many were not since the
// last.
func (l *limit) take(now time.Time) (leftOut int, ok bool) {
	if now.Before(l.next) {
		l.leftOut++
		return 0, false
	}
	leftOut, l.leftOut, l.next = l.leftOut, 0, now.Add(reportEvery)
	return leftOut, true
}
