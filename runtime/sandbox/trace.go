package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// trace keeps a sandbox's disks and phases for people who look into it, as a
// JSON file that outlives the sandbox. Without a directory it does nothing. Beside
// that it has the spans of the first start in the sandbox (startTrace). Its
// methods may be called from any goroutine; that a file cannot be written
// never fails a start.
type trace struct {
	path  string
	begun time.Time
	start *startTrace
	mu    sync.Mutex
	file  traceFile
}

// traceFile is the content of <debug.trace_dir>/<id>.json.
type traceFile struct {
	ID          string       `json:"id"`
	Namespace   string       `json:"namespace"`
	Accelerator string       `json:"accelerator,omitempty"`
	Kernel      string       `json:"kernel,omitempty"`
	Template    string       `json:"template,omitempty"` // that the VM went on from
	Sample      string       `json:"sample,omitempty"`   // random bytes of the guest, once it was made one of its own
	Strategy    string       `json:"strategy,omitempty"`
	Reason      string       `json:"reason,omitempty"`
	Disks       []traceDisk  `json:"disks,omitempty"`
	Descriptor  string       `json:"descriptor,omitempty"` // text of the VMDK, with the paths of what QEMU gets as descriptors
	Phases      []tracePhase `json:"phases"`
}

type traceDisk struct {
	Role       string             `json:"role"`
	Driver     string             `json:"driver"`
	Path       string             `json:"path,omitempty"` // of a raw disk
	Address    string             `json:"address"`        // in the guest: PCI path, or SCSI id and lun
	ReadOnly   bool               `json:"readonly"`
	Bytes      int64              `json:"bytes"`
	Extents    []vmdk.Extent      `json:"extents,omitempty"`
	Partitions []rootfs.Partition `json:"partitions,omitempty"`
}

// tracePhase is a step of the sandbox's life; phases may overlap. Start counts
// from the Create that booted the VM. Times are in microseconds.
type tracePhase struct {
	Name     string `json:"name"`
	Start    int64  `json:"start_us"`
	Duration int64  `json:"duration_us"`
}

func newTrace(dir, namespace string, who identity) *trace {
	id := who.id
	t := &trace{begun: who.begun, start: newStartTrace(namespace, who), file: traceFile{ID: id, Namespace: namespace}}
	if dir != "" {
		t.path = filepath.Join(dir, id+".json")
	}
	return t
}

// phase records a step that began at begun and has just ended.
func (t *trace) phase(name string, begun time.Time) {
	t.add(name, begun, time.Since(begun))
}

func (t *trace) add(name string, begun time.Time, d time.Duration) {
	t.start.step(name, begun, begun.Add(d))
	t.set(func(f *traceFile) {
		f.Phases = append(f.Phases, tracePhase{name, begun.Sub(t.begun).Microseconds(), d.Microseconds()})
	})
}

// timings records what QEMU's start consisted of.
func (t *trace) timings(q qemu.Timings) {
	now := time.Now()
	t.add("qemu exec to qmp", now.Add(-q.Ready), q.QMP)
	t.add("qemu exec to agent", now.Add(-q.Ready), q.Ready)
	t.add("guest boot", now.Add(q.QMP-q.Ready), q.Ready-q.QMP)
	step := now.Add(-q.Ready - q.Exec - q.Vsock - q.Probe)
	for _, s := range []struct {
		name string
		took time.Duration
	}{{"qemu probe", q.Probe}, {"vsock device", q.Vsock}, {"qemu exec", q.Exec}, {"qemu monitor", q.QMP}} {
		t.start.step(s.name, step, step.Add(s.took))
		step = step.Add(s.took)
	}
}

func (t *trace) disks(plan *rootfs.Plan, places []place) {
	if t.path == "" {
		return
	}
	t.set(func(f *traceFile) {
		f.Strategy, f.Reason = string(plan.Strategy), plan.Reason
		for i, d := range plan.Disks {
			f.Disks = append(f.Disks, traceDisk{
				Role: string(d.Role), Driver: string(d.Driver), Path: d.Path, Address: places[i].source,
				ReadOnly: d.ReadOnly, Bytes: d.Bytes, Extents: d.Extents, Partitions: d.Partitions,
			})
			if d.Driver == rootfs.DriverVMDK {
				text, _ := vmdk.Descriptor(vmdk.Resolve(d.Extents, generatedName))
				f.Descriptor = string(text)
			}
		}
	})
}

// generatedName stands in a trace for the file that was made for a disk alone.
const generatedName = "/partition-table"

func (t *trace) set(change func(*traceFile)) {
	if t.path == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.file)
	data, err := json.MarshalIndent(&t.file, "", "  ")
	if err != nil {
		return
	}
	if os.MkdirAll(filepath.Dir(t.path), 0o755) == nil {
		_ = replaceFile(t.path, append(data, '\n'))
	}
}
