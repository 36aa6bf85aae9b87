package verity

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/uevent"
)

// What a device mapper is needed for is tried in a VM, by the tests of
// cmd/erofsvm-agent.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEventThatNamesACorruptBlockIsRead(t *testing.T) {
	for _, c := range []struct {
		text   string
		kind   string
		block  uint64
		number uint64
		ok     bool
	}{
		{"DM_VERITY_ERR_BLOCK_NR=0,7|MAJOR=254|MINOR=3", "data", 7, unix.Mkdev(254, 3), true},
		{"MAJOR=254|MINOR=3|DM_VERITY_ERR_BLOCK_NR=1,18446744073709551615", "hashes", 1<<64 - 1, unix.Mkdev(254, 3), true},
		{"MAJOR=254|MINOR=3", "", 0, 0, false},
		{"DM_VERITY_ERR_BLOCK_NR=2,7|MAJOR=254|MINOR=3", "", 0, 0, false},
		{"DM_VERITY_ERR_BLOCK_NR=0|MAJOR=254|MINOR=3", "", 0, 0, false},
		{"DM_VERITY_ERR_BLOCK_NR=0,-1|MAJOR=254|MINOR=3", "", 0, 0, false},
		{"DM_VERITY_ERR_BLOCK_NR=0,7|MAJOR=254", "", 0, 0, false},
		{"DM_VERITY_ERR_BLOCK_NR=0,7|MAJOR=254|MINOR=4294967296", "", 0, 0, false},
	} {
		event := uevent.Parse([]byte("change@/devices/virtual/block/dm-3\x00" + strings.ReplaceAll(c.text, "|", "\x00") + "\x00"))
		kind, block, number, ok := corrupt(event)
		if kind != c.kind || block != c.block || number != c.number || ok != c.ok {
			t.Errorf("%s: %q, %d, %d, %v", c.text, kind, block, number, ok)
		}
	}
}

func TestReportsAreOneASecondAndCountTheOthers(t *testing.T) {
	var l limit
	begin := time.Unix(1000, 0)
	for _, c := range []struct {
		after   time.Duration
		ok      bool
		leftOut int
	}{{0, true, 0}, {0, false, 0}, {time.Second - 1, false, 0}, {time.Second, true, 2}, {time.Second + 1, false, 0}, {time.Hour, true, 1}, {2 * time.Hour, true, 0}} {
		leftOut, ok := l.take(begin.Add(c.after))
		if ok != c.ok || leftOut != c.leftOut {
			t.Errorf("after %v: %v, %d left out", c.after, ok, leftOut)
		}
	}
}

func TestLogLineHasThePlaceThatTheHostKnows(t *testing.T) {
	var lines bytes.Buffer
	dev := &Device{
		owner: New(slog.New(slog.NewJSONHandler(&lines, nil))),
		layer: Layer{Container: "c", Disk: uevent.Disk{Driver: uevent.Block, Source: "08/02", Partition: 3}},
	}
	now := time.Unix(1000, 0)
	for range 3 {
		dev.log(now, "block", uint64(7), "holds", "data")
	}
	dev.log(now.Add(reportEvery))
	for _, want := range []string{
		`"container":"c","disk":"08/02","partition":3,"block":7,"holds":"data","left_out":0`,
		`"container":"c","disk":"08/02","partition":3,"left_out":2`,
	} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("no %s in\n%s", want, lines.String())
		}
	}
	if n := strings.Count(lines.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2:\n%s", n, lines.String())
	}
}

func TestStatusOfTheTargetIsItsFirstLetter(t *testing.T) {
	for status, want := range map[string]bool{"C": true, "V": false, "C -": true, "V 0": false, "": false} {
		if got := corruptState(status); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}

func TestDeviceNamesAreShortAndOfOneLayer(t *testing.T) {
	long := strings.Repeat("a", 128)
	names := map[string]Layer{}
	for _, l := range []Layer{
		{Container: "c", Disk: uevent.Disk{Driver: uevent.Block, Source: "08/02"}},
		{Container: "c", Disk: uevent.Disk{Driver: uevent.Block, Source: "08/02", Partition: 255}},
		{Container: "c", Disk: uevent.Disk{Driver: uevent.Block, Source: "08/02.1/03"}},
		{Container: "c", Disk: uevent.Disk{Driver: uevent.SCSI, Source: "8:2"}},
		{Container: "c-08.02", Disk: uevent.Disk{Driver: uevent.Block, Source: "08/02"}},
		{Container: long, Disk: uevent.Disk{Driver: uevent.SCSI, Source: "255:16383", Partition: 255}},
		{Container: long[1:] + "b", Disk: uevent.Disk{Driver: uevent.SCSI, Source: "255:16383", Partition: 255}},
		{Container: long, Disk: uevent.Disk{Driver: uevent.Block, Source: strings.Repeat("1f.7/", 7) + "1f.7", Partition: 255}},
	} {
		name := deviceName(l)
		if other, taken := names[name]; taken {
			t.Errorf("%q is %+v and %+v", name, other, l)
		}
		names[name] = l
		if len(name) >= len(newRequest("").Name) || strings.Contains(name, "/") {
			t.Errorf("%q has %d bytes", name, len(name))
		}
	}
}

// The kernel reads the target behind the header, and its parameters behind the
// target (include/uapi/linux/dm-ioctl.h).
func TestRequestIsLaidOutAsTheKernelReadsIt(t *testing.T) {
	r := newRequest("name")
	header, target := unsafe.Offsetof(r.target), unsafe.Offsetof(r.text)
	if header != 312 || target != 312+40 || r.Data_start != 312 || r.Data_size != 312+40+1024 {
		t.Errorf("target at %d, parameters at %d; data from %d, %d bytes", header, target, r.Data_start, r.Data_size)
	}
}

func TestTableThatDoesNotFitIsRefused(t *testing.T) {
	if err := loadTable("name", 8, strings.Repeat("x", 1024)); err == nil || !strings.Contains(err.Error(), "1024 bytes") {
		t.Errorf("%v", err)
	}
}

func TestLayerThatIsNoBlockDeviceIsRefused(t *testing.T) {
	devices := New(slog.New(slog.DiscardHandler))
	defer devices.Stop()
	for _, node := range []string{"/dev/null", t.TempDir(), "/nothing"} {
		if dev, err := devices.Open(Layer{Node: node, Disk: uevent.Disk{Source: "08/02"}, Tree: Tree{RootHash: strings.Repeat("0", 64), HashOffset: 4096}}); err == nil || !strings.Contains(err.Error(), "08/02") {
			t.Errorf("%s: %v, %v", node, dev, err)
		}
	}
}
