package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"regexp"
	"sync"
	"time"

	"github.com/containerd/log"
	"golang.org/x/time/rate"
)

const (
	// logPort is the vsock port at which the agent hands out its log.
	logPort = 1025

	// maxGuestLine is the longest line that is read of it, in bytes; our agent
	// cuts its own at half of that.
	maxGuestLine = 16 << 10

	// What a guest may write into the host's log: that many lines at once, and
	// that many a second.
	guestLineBurst, guestLineRate = 200, 20
)

// guestKey is what the key of a field may be. Formatters of logs do not quote
// keys, and the guest is not trusted.
var guestKey = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z][a-z_]{0,31}$`)
})

// followLog copies the agent's log into the shim's until the VM ends. That there
// is none is no error: another agent may not have it.
func (m *machine) followLog() {
	dial, cancel := context.WithTimeout(m.ctx, m.cfg.Deadlines.Call.Std())
	conn, err := m.vm.Dial(dial, logPort)
	cancel()
	if err != nil {
		m.log.WithError(err).Debug("the agent's log cannot be read")
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(m.ctx, func() { conn.Close() })
	defer stop()
	if err := m.copyLog(conn, time.Now); err != nil && m.ctx.Err() == nil {
		m.log.WithError(err).Warn("the agent's log ends")
	}
}

// copyLog reads lines until the connection ends. now is the clock of the limit.
func (m *machine) copyLog(conn net.Conn, now func() time.Time) error {
	limit := rate.NewLimiter(guestLineRate, guestLineBurst)
	lost := 0
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 1024), maxGuestLine)
	for lines.Scan() {
		if !limit.AllowN(now(), 1) {
			lost++
			continue
		}
		if lost > 0 {
			m.log.Warnf("guest: %d lines of its log are left out, it writes too many", lost)
			lost = 0
		}
		m.logLine(lines.Bytes())
	}
	return lines.Err()
}

// logLine writes one line of the agent, which is an object in JSON, with the
// names that the host has for what it speaks of.
func (m *machine) logLine(line []byte) {
	var said map[string]any
	if err := json.Unmarshal(line, &said); err != nil {
		m.log.Debugf("guest: %.200q", line)
		return
	}
	fields := log.Fields{}
	for key, value := range said {
		switch key {
		case "time", "level", "msg":
		default:
			if guestKey().MatchString(key) {
				fields[key] = fmt.Sprint(value)
			}
		}
	}
	disk, _ := said["disk"].(string)
	partition, _ := said["partition"].(float64)
	if layer := m.layers.at(disk, int(partition)); layer != "" {
		fields["layer"] = layer
	}
	level := log.InfoLevel
	switch said["level"] {
	case "DEBUG":
		level = log.DebugLevel
	case "WARN":
		level = log.WarnLevel
	case "ERROR":
		level = log.ErrorLevel
	}
	m.log.WithFields(fields).Log(level, "guest: ", fmt.Sprint(said["msg"]))
}
