package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Trace is what the shim writes about a sandbox into debug.trace_dir: which
// disks it made of the image, and how long each step took.
type Trace struct {
	ID          string       `json:"id"`
	Namespace   string       `json:"namespace"`
	Accelerator string       `json:"accelerator"`
	Kernel      string       `json:"kernel"`
	Strategy    string       `json:"strategy"`
	Reason      string       `json:"reason"`
	Disks       []TraceDisk  `json:"disks"`
	Descriptor  string       `json:"descriptor"` // of the VMDK, with the paths of its files; empty without one
	Phases      []TracePhase `json:"phases"`
}

// TraceDisk is one disk of the VM.
type TraceDisk struct {
	Role     string        `json:"role"` // "upper" or "layers"
	Driver   string        `json:"driver"`
	Path     string        `json:"path"`    // empty for a VMDK
	Address  string        `json:"address"` // PCI path, or SCSI id and lun
	ReadOnly bool          `json:"readonly"`
	Bytes    int64         `json:"bytes"`
	Extents  []TraceExtent `json:"extents"`
}

// TraceExtent is one extent of a VMDK, in sectors of 512 bytes.
type TraceExtent struct {
	Path    string `json:"path"`
	Sectors int64  `json:"sectors"`
	Offset  int64  `json:"offset"`
}

// TracePhase is one step, in microseconds since the Create that booted the VM.
// Phases overlap.
type TracePhase struct {
	Name     string `json:"name"`
	Start    int64  `json:"start_us"`
	Duration int64  `json:"duration_us"`
}

// Began is where the phase begins, after that Create did.
func (p TracePhase) Began() time.Duration { return time.Duration(p.Start) * time.Microsecond }

// Took is the phase's duration.
func (p TracePhase) Took() time.Duration { return time.Duration(p.Duration) * time.Microsecond }

// Phase finds a phase by name.
func (t *Trace) Phase(name string) (TracePhase, bool) {
	for _, p := range t.Phases {
		if p.Name == name {
			return p, true
		}
	}
	return TracePhase{}, false
}

// Trace reads the trace of a sandbox, which is named after its first container.
func (c *Containerd) Trace(id string) (*Trace, error) {
	data, err := os.ReadFile(filepath.Join(c.dirs.traces, id+".json"))
	if err != nil {
		return nil, fmt.Errorf("trace of %s: %w", id, err)
	}
	var t Trace
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fmt.Errorf("trace of %s: %w", id, err)
	}
	return &t, nil
}

// HasTrace says whether the shim has got so far as to write a trace.
func (c *Containerd) HasTrace(id string) bool {
	_, err := os.Stat(filepath.Join(c.dirs.traces, id+".json"))
	return err == nil
}
