// Package cgstat reads what a cgroup of the unified hierarchy has used into the
// messages of the agent's protocol, as docs/stats-wire.md lays it out.
//
// It reads files and keeps nothing; any goroutine may call it. It never writes,
// and never asks which controllers there are: a file that is not there is a
// number that is left out, since kernels and groups differ in what they count.
package cgstat

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Read returns the statistics of the cgroup at dir. A group that is gone is
// os.ErrNotExist.
func Read(dir string) (*pb.CgroupStats, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	r := reader{dir: dir, stats: map[string]uint64{}}
	r.keyed("memory.stat", "")
	for _, file := range []string{"memory.events", "memory.swap.events", "cpu.stat"} {
		r.keyed(file, file+".")
	}
	for _, file := range []string{
		"memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.swap.max", "memory.swap.peak",
		"pids.current", "pids.max",
	} {
		r.single(file)
	}
	for _, file := range []string{"cpu.pressure", "memory.pressure", "io.pressure"} {
		r.pressure(file)
	}
	out := &pb.CgroupStats{BlkioStats: r.io("io.stat"), HugetlbStats: r.hugetlb()}
	r.classic(out)
	return out, r.err
}

// OOMKills is how many processes of the cgroup at dir the kernel has killed for
// want of memory, 0 for a group without that controller.
func OOMKills(dir string) (uint64, error) {
	r := reader{dir: dir, stats: map[string]uint64{}}
	r.keyed("memory.events", "")
	return r.stats["oom_kill"], r.err
}

// reader collects numbers of one cgroup. The first error ends it.
type reader struct {
	dir   string
	stats map[string]uint64
	err   error
}

// read returns the lines of a file, none if there is no such file. Pressure is
// not counted where the kernel was told so: then its files give EOPNOTSUPP.
func (r *reader) read(file string) []string {
	if r.err != nil {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(r.dir, file))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		r.err = err
		return nil
	}
	return strings.FieldsFunc(string(text), func(c rune) bool { return c == '\n' })
}

func (r *reader) malformed(file, line string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: line %.80q is not what it has by Documentation/admin-guide/cgroup-v2.rst", filepath.Join(r.dir, file), line)
	}
}

// number is the value of one file or line, where "max" is no limit.
func (r *reader) number(file, line, text string) uint64 {
	if text == "max" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		r.malformed(file, line)
	}
	return n
}

// keyed takes lines of "name value".
func (r *reader) keyed(file, prefix string) {
	for _, line := range r.read(file) {
		name, value, found := strings.Cut(line, " ")
		if !found {
			r.malformed(file, line)
			return
		}
		r.stats[prefix+name] = r.number(file, line, value)
	}
}

// single takes a file that holds one number.
func (r *reader) single(file string) {
	for _, line := range r.read(file) {
		r.stats[file] = r.number(file, line, line)
	}
}

// pressure takes lines of "some avg10=0.00 avg60=0.00 avg300=0.00 total=0". The
// averages have two decimals, so hundredths lose nothing.
func (r *reader) pressure(file string) {
	for _, line := range r.read(file) {
		fields := strings.Fields(line)
		for _, field := range fields[1:] {
			name, value, found := strings.Cut(field, "=")
			if whole, decimals, average := strings.Cut(value, "."); average {
				found = found && len(decimals) == 2
				value = whole + decimals
			}
			if !found {
				r.malformed(file, line)
				return
			}
			r.stats[file+"."+fields[0]+"."+name] = r.number(file, line, value)
		}
	}
}

// io takes lines of "major:minor rbytes=0 wbytes=0 rios=0 wios=0 dbytes=0 dios=0".
// A device that did nothing has a line without numbers.
func (r *reader) io(file string) *pb.BlkioStats {
	out := &pb.BlkioStats{}
	for _, line := range r.read(file) {
		fields := strings.Fields(line)
		major, minor, found := strings.Cut(fields[0], ":")
		if !found {
			r.malformed(file, line)
			return out
		}
		device := pb.BlkioStatsEntry{Major: r.number(file, line, major), Minor: r.number(file, line, minor)}
		for _, field := range fields[1:] {
			name, value, _ := strings.Cut(field, "=")
			op, known := ioOps[name]
			if !known {
				continue
			}
			list := &out.IoServicedRecursive
			if op.bytes {
				list = &out.IoServiceBytesRecursive
			}
			*list = append(*list, &pb.BlkioStatsEntry{Major: device.Major, Minor: device.Minor, Op: op.name, Value: r.number(file, line, value)})
		}
	}
	return out
}

var ioOps = map[string]struct {
	name  string
	bytes bool
}{
	"rbytes": {"Read", true}, "wbytes": {"Write", true}, "dbytes": {"Discard", true},
	"rios": {"Read", false}, "wios": {"Write", false}, "dios": {"Discard", false},
}

// hugetlb takes the files "hugetlb.<size>.current", ".events" and ".max" of each
// size that there is.
func (r *reader) hugetlb() map[string]*pb.HugetlbStats {
	found, err := filepath.Glob(filepath.Join(r.dir, "hugetlb.*.events"))
	if err != nil || len(found) == 0 {
		return nil
	}
	out := map[string]*pb.HugetlbStats{}
	for _, path := range found {
		events := filepath.Base(path)
		name := strings.TrimSuffix(events, ".events")
		one := reader{dir: r.dir, stats: map[string]uint64{}}
		one.keyed(events, "")
		one.single(name + ".current")
		r.single(name + ".max")
		if r.err == nil {
			r.err = one.err
		}
		out[strings.TrimPrefix(name, "hugetlb.")] = &pb.HugetlbStats{Usage: one.stats[name+".current"], Failcnt: one.stats["max"]}
	}
	return out
}

// classic fills in the fields that have the shape of cgroup v1.
func (r *reader) classic(out *pb.CgroupStats) {
	s := r.stats
	const nano = 1000 // nanoseconds in a microsecond
	out.CpuStats = &pb.CpuStats{
		CpuUsage: &pb.CpuUsage{
			TotalUsage:        s["cpu.stat.usage_usec"] * nano,
			UsageInUsermode:   s["cpu.stat.user_usec"] * nano,
			UsageInKernelmode: s["cpu.stat.system_usec"] * nano,
		},
		ThrottlingData: &pb.ThrottlingData{
			Periods:          s["cpu.stat.nr_periods"],
			ThrottledPeriods: s["cpu.stat.nr_throttled"],
			ThrottledTime:    s["cpu.stat.throttled_usec"] * nano,
		},
	}
	data := func(file string) *pb.MemoryData {
		return &pb.MemoryData{Usage: s[file+".current"], MaxUsage: s[file+".peak"], Limit: s[file+".max"], Failcnt: s[file+".events.max"]}
	}
	out.MemoryStats = &pb.MemoryStats{
		Cache:        s["file"],
		Usage:        data("memory"),
		SwapUsage:    data("memory.swap"),
		KernelUsage:  &pb.MemoryData{Usage: s["kernel"]},
		UseHierarchy: true,
		Stats:        s,
	}
	out.PidsStats = &pb.PidsStats{Current: s["pids.current"], Limit: s["pids.max"]}
}
