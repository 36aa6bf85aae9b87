// Package fio writes a job file for fio(1) and reads its report: reads of many
// devices, and writes of files, in turn, in one process.
//
// It owns the two formats and runs nothing: it starts no process and no
// goroutine. Its functions may be called from any goroutine.
package fio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Target is a range of a block device.
type Target struct {
	Name   string // letters, digits and '-'
	Device string // as the process of fio sees it
	Offset int64  // in bytes, a multiple of 4096
	Bytes  int64  // length, a multiple of 1 MiB
}

// Pattern is a way to read, and to write.
type Pattern struct {
	Name   string // letters, digits and '-'
	Random bool
	Block  int // bytes of a request
	Writes int // of a hundred requests
}

// Sample is what one job has read and written.
type Sample struct {
	Target, Pattern string
	Round           int // from 0
	BytesPerSecond  float64
	PerSecond       float64 // requests
}

// Args are the arguments of fio for a job file: for a report that Parse reads,
// and against any writing, unless one of the patterns writes.
func Args(jobs string, patterns []Pattern) []string {
	args := []string{"--output-format=json"}
	if !slices.ContainsFunc(patterns, func(p Pattern) bool { return p.Writes > 0 }) {
		args = append(args, "--readonly")
	}
	return append(args, jobs)
}

// depth is how many requests are on the way at a time.
const depth = 8

// Jobs is the text of a job file in which, round by round and pattern by pattern,
// each target is read for as long as took, past the page cache of the guest. No
// two jobs run at the same time. The order turns around from round to round, so
// that none is always the first.
func Jobs(targets []Target, patterns []Pattern, rounds int, took time.Duration) string {
	var b strings.Builder
	// thread: no process for each job. gtod_reduce: no look at the clock for each
	// request, which an emulated processor pays for.
	fmt.Fprintf(&b, "[global]\nioengine=libaio\niodepth=%d\ndirect=1\nthread=1\ntime_based=1\nruntime=%dms\n"+
		"gtod_reduce=1\nnorandommap=1\nrandrepeat=0\n", depth, took.Milliseconds())
	for round := range rounds {
		for _, p := range patterns {
			for i := range targets {
				t := targets[i]
				if round%2 == 1 {
					t = targets[len(targets)-1-i]
				}
				fmt.Fprintf(&b, "\n[%s.%s.%d]\nstonewall\nfilename=%s\noffset=%d\nsize=%d\nrw=%s\nbs=%d\n",
					p.Name, t.Name, round, t.Device, t.Offset, t.Bytes, p.mode(), p.Block)
			}
		}
	}
	return b.String()
}

// mode is the value of rw=, with that of rwmixwrite= if there is a mixture.
func (p Pattern) mode() string {
	random := ""
	if p.Random {
		random = "rand"
	}
	switch p.Writes {
	case 0:
		return random + "read"
	case 100:
		return random + "write"
	}
	return fmt.Sprintf("%srw\nrwmixwrite=%d", random, p.Writes)
}

// report is what is of interest in fio's output with --output-format=json.
type report struct {
	Jobs []struct {
		Name  string   `json:"jobname"`
		Error int      `json:"error"`
		Read  requests `json:"read"`
		Write requests `json:"write"`
	} `json:"jobs"`
}

type requests struct {
	Bytes int64   `json:"io_bytes"`
	BW    float64 `json:"bw_bytes"`
	IOPS  float64 `json:"iops"`
}

// Parse reads fio's report in JSON. A job that failed, or did nothing, is an
// error.
func Parse(output string) ([]Sample, error) {
	// What fio has to say besides stands before the object.
	_, object, found := strings.Cut(output, "{")
	if !found {
		return nil, fmt.Errorf("fio has no report: %.300q", output)
	}
	var r report
	if err := json.NewDecoder(bytes.NewReader([]byte("{" + object))).Decode(&r); err != nil {
		return nil, fmt.Errorf("fio's report: %w", err)
	}
	if len(r.Jobs) == 0 {
		return nil, errors.New("fio's report has no jobs")
	}
	samples := make([]Sample, 0, len(r.Jobs))
	for _, j := range r.Jobs {
		pattern, rest, ok := strings.Cut(j.Name, ".")
		target, number, _ := strings.Cut(rest, ".")
		round, err := strconv.Atoi(number)
		if !ok || err != nil {
			return nil, fmt.Errorf("fio's report has a job %q that nobody asked for", j.Name)
		}
		if j.Error != 0 || j.Read.Bytes+j.Write.Bytes == 0 {
			return nil, fmt.Errorf("fio's job %s read %d bytes and wrote %d, error %d", j.Name, j.Read.Bytes, j.Write.Bytes, j.Error)
		}
		samples = append(samples, Sample{
			Target: target, Pattern: pattern, Round: round,
			BytesPerSecond: j.Read.BW + j.Write.BW, PerSecond: j.Read.IOPS + j.Write.IOPS,
		})
	}
	return samples, nil
}
