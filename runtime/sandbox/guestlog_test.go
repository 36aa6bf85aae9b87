package sandbox

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/erofsvm/erofsvm/rootfs"
)

// hears feeds lines to a machine's log, on a clock that stands still, and
// returns what is in the log then.
func hears(t *testing.T, m *machine, lines ...string) string {
	t.Helper()
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	logger.SetLevel(logrus.DebugLevel)
	logger.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	m.log = logrus.NewEntry(logger)

	guest, host := net.Pipe()
	go func() {
		defer guest.Close()
		_, _ = guest.Write([]byte(strings.Join(lines, "\n") + "\n"))
	}()
	defer host.Close()
	now := time.Now()
	if err := m.copyLog(host, func() time.Time { return now }); err != nil {
		t.Error(err)
	}
	return out.String()
}

func TestGuestLogNamesTheLayer(t *testing.T) {
	m := &machine{}
	m.layers.add("02/01", rootfs.Disk{Partitions: []rootfs.Partition{{Number: 1, Path: "/top.erofs"}, {Number: 2, Path: "/below.erofs"}}})
	line := `{"time":"2026-01-01T00:00:00Z","level":"ERROR","msg":"dm-verity: block is corrupt","disk":"02/01","partition":2,"block":7}`
	got := hears(t, m, line)
	want := `level=error msg="guest: dm-verity: block is corrupt" block=7 disk=02/01 layer=/below.erofs partition=2` + "\n"
	if got != want {
		t.Errorf("log is\n%swant\n%s", got, want)
	}
	m.layers.remove("02/01")
	if got := hears(t, m, line); strings.Contains(got, "layer=") {
		t.Errorf("a disk that is gone still has layers: %s", got)
	}
}

// TestGuestCannotForgeTheLog: neither a key nor a text of the guest ends a line
// or passes for a field of the host.
func TestGuestCannotForgeTheLog(t *testing.T) {
	got := hears(t, &machine{},
		`{"level":"INFO","msg":"a\nlevel=error msg=forged","x\ny":"z","time=1 level":"2","note":"b\nc"}`,
		"not JSON \x1b[2J at all", `["neither"]`)
	if n := strings.Count(got, "\n"); n != 3 {
		t.Errorf("%d lines of three:\n%s", n, got)
	}
	for _, bad := range []string{"\nlevel=error", "x\n", "\x1b", "time=1"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q came through:\n%s", bad, got)
		}
	}
}

func TestGuestCannotFloodTheLog(t *testing.T) {
	lines := make([]string, 5000)
	for i := range lines {
		lines[i] = `{"msg":"again"}`
	}
	if n := strings.Count(hears(t, &machine{}, lines...), "\n"); n != guestLineBurst {
		t.Errorf("%d of %d lines at one moment, want %d", n, len(lines), guestLineBurst)
	}
}
