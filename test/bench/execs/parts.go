package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/cputime"
	"github.com/erofsvm/erofsvm/test/harness"
)

// parts are the processes of the host that one VM is made of.
type parts []part

type part struct {
	name string
	pid  int
}

func findParts(c *harness.Containerd) (parts, error) {
	var found parts
	for _, p := range []struct {
		name string
		find func() ([]int, error)
	}{{"QEMU", c.VMs}, {"vhost-device-vsock", c.VsockDaemons}, {"shim", c.Shims}} {
		pids, err := p.find()
		if err != nil {
			return nil, err
		}
		if len(pids) != 1 {
			return nil, fmt.Errorf("%d processes %s of one VM: %v", len(pids), p.name, pids)
		}
		found = append(found, part{p.name, pids[0]})
	}
	return found, nil
}

// processor is for how long each of them had one.
func (p parts) processor() ([]time.Duration, error) {
	times := make([]time.Duration, len(p))
	for i, one := range p {
		var err error
		if times[i], err = cputime.Of(one.pid); err != nil {
			return nil, fmt.Errorf("%s: %w", one.name, err)
		}
	}
	return times, nil
}

// amounts are the memory and the open descriptors of each of them: proc(5),
// smaps_rollup and fd.
func (p parts) amounts() ([]amount, error) {
	var all []amount
	for _, one := range p {
		dir := "/proc/" + strconv.Itoa(one.pid)
		text, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.name, err)
		}
		rss, err := field(string(text), "Rss:")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.name, err)
		}
		pss, err := field(string(text), "Pss:")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.name, err)
		}
		descriptors, err := os.ReadDir(dir + "/fd")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", one.name, err)
		}
		all = append(all, amount{one.name + " RSS", "MiB", rss}, amount{one.name + " PSS", "MiB", pss},
			amount{one.name, "descriptors", float64(len(descriptors))})
	}
	return all, nil
}

// field finds "Name:   123 kB", and returns MiB.
func field(text, name string) (float64, error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) >= 2 && words[0] == name {
			kib, err := strconv.ParseFloat(words[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("there is no %s", name)
}
