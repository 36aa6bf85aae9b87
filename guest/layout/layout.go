// Package layout names the places inside the guest image that its builder and
// the agent must agree on. It holds names only.
package layout

import "github.com/erofsvm/erofsvm/agentclient/streamwire"

const (
	// Init is the agent; the kernel starts it as PID 1.
	Init = "/init"

	// Mark is an empty file, and the first member of the initramfs, by which a shim
	// knows that the agent finds disks that were there before it.
	Mark = "/.erofsvm-guest"

	// ModuleDir holds uncompressed kernel modules, flat, without the
	// directories they have in the distribution's package.
	ModuleDir = "/modules"

	// ModuleList is a text file, one module a line, "<stage> <file>", in the
	// order in which they must be loaded within their stage.
	ModuleList = ModuleDir + "/list"
)

// The stages of ModuleList. Every guest loads the first two, in this order; each
// of the others is loaded when something first needs it, by itself and in any
// order, so that it costs no time where nothing does. A module that two of those
// need stands in both.
const (
	StageBoot    = "boot"    // before the agent can listen
	StageLate    = "late"    // once it listens, before the first storage is mounted
	StageSCSI    = "scsi"    // before the first disk of a SCSI controller
	StageVerity  = "verity"  // before the first layer with a hash tree
	StageNetwork = "network" // before the first interface
	// StageVirtioFS is before the first share of the host's files.
	StageVirtioFS = "virtiofs"
	// StageMemory is once the guest is ready, beside the first calls: what gives memory
	// back to the host.
	StageMemory = "memory"
)

// Stages returns all stages, in the order in which they stand in ModuleList.
func Stages() []string {
	return []string{StageBoot, StageLate, StageSCSI, StageVerity, StageNetwork, StageVirtioFS, StageMemory}
}

// OnDemand reports whether a stage is loaded only when something needs it.
func OnDemand(stage string) bool { return stage != StageBoot && stage != StageLate }

// Vsock ports of the guest, and of the host for PortReady.
const (
	PortAgent   = 1024                 // ttrpc, agent-wire.md
	PortLog     = 1025                 // the agent's log, JSON lines, to whoever connects
	PortStreams = streamwire.Port      // streams of processes, docs/streams-wire.md
	PortFiles   = streamwire.FilesPort // files and sockets, docs/files-wire.md
	PortPorts   = streamwire.PortsPort // TCP ports of the loopback, docs/ports-wire.md
	PortReady   = 1028                 // on the host (CID 2): the agent dials it once when it listens
)

// TemplateReady is the line that a guest without a vsock device writes to its console
// when it may be saved as a template.
const TemplateReady = "erofsvm-agent: this guest can be a template"
