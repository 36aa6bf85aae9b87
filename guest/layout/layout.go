// Package layout names the places inside the guest image that its builder and
// the agent must agree on. It holds constants only.
package layout

import "github.com/erofsvm/erofsvm/agentclient/streamwire"

const (
	// Init is the agent; the kernel starts it as PID 1.
	Init = "/init"

	// ModuleDir holds uncompressed kernel modules, flat, without the
	// directories they have in the distribution's package.
	ModuleDir = "/modules"

	// ModuleList is a text file, one module a line, "<stage> <file>", in the
	// order in which they must be loaded. Stage "boot" is needed before the
	// agent can listen; stage "late" is loaded once it listens, and before the
	// first storage is mounted.
	ModuleList = ModuleDir + "/list"

	// StageBoot and StageLate are the stages of ModuleList.
	StageBoot = "boot"
	StageLate = "late"
)

// Vsock ports of the guest, and of the host for PortReady.
const (
	PortAgent   = 1024            // ttrpc, agent-wire.md
	PortLog     = 1025            // the agent's log, JSON lines, to whoever connects
	PortStreams = streamwire.Port // streams of processes, docs/streams-wire.md
	PortReady   = 1028            // on the host (CID 2): the agent dials it once when it listens
)
