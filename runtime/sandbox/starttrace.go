package sandbox

import (
	"path/filepath"
	"sync"
	"time"

	spans "github.com/erofsvm/erofsvm/runtime/trace"
)

// startTraceFile has the spans of a sandbox's start, in its directory.
const startTraceFile = "start.otlp.json"

// wholeStart is the span that all others are in: from the first instruction of the
// shim, or from the call that makes the VM, to the first of the container.
const wholeStart = "start"

// steps are the phases that make up a start, each with what it is a part of. Those of
// one part follow each other or run side by side, and leave no time between them.
var steps = map[string]string{
	"shim start":      wholeStart, // containerd's exec of it, until it serves
	"wait for create": wholeStart, // containerd's
	"create":          wholeStart,
	"wait for start":  wholeStart, // the client's
	"container start": wholeStart,

	"spec": "create", "prepare": "create", "turn": "create", "plan": "create", "qemu start": "create", "network": "create",
	"guest boot": "create", "agent connect": "create", "template": "create", "make unique": "create", "personalise": "create", "grow": "create", "attach": "create",
	"volumes": "create", "container create": "create", "streams": "create",

	"qemu probe": "qemu start", "vsock device": "qemu start", "qemu exec": "qemu start", "qemu monitor": "qemu start",
	"mkfs": "volumes", "copy": "volumes", "share": "volumes",
}

// launch is when the process of the shim began, and began to serve.
type launch struct{ began, serving time.Time }

// startTrace follows the first start in a sandbox, from the call that makes the VM
// until the process of a container runs or the start has failed. Its methods may be
// called from any goroutine.
type startTrace struct {
	spans *spans.Trace
	about []spans.Attribute

	mu      sync.Mutex
	from    time.Time
	created time.Time // the end of the create
	over    bool
}

func newStartTrace(namespace string, who identity) *startTrace {
	t := &startTrace{
		spans: spans.New(who.caller), from: who.begun,
		about: []spans.Attribute{{Key: "service.name", Value: "containerd-shim-erofsvm-v2"}, {Key: "erofsvm.namespace", Value: namespace}, {Key: "erofsvm.sandbox", Value: who.id}},
	}
	if l := who.launch; !l.began.IsZero() && l.began.Before(l.serving) && l.serving.Before(who.begun) {
		t.from = l.began
		t.step("shim start", l.began, l.serving)
		t.step("wait for create", l.serving, who.begun)
	}
	return t
}

// step records one of steps that has ended. Others are no part of a start.
func (t *startTrace) step(name string, begun, ended time.Time) {
	parent, known := steps[name]
	t.mu.Lock()
	defer t.mu.Unlock()
	if !known || t.over {
		return
	}
	t.spans.Add(name, parent, begun, ended)
	if name == "create" {
		t.created = ended
	}
}

// end completes the trace and returns its text: container runs since now, or its start
// has failed with cause. The second time, it returns nothing.
func (t *startTrace) end(container string, now time.Time, cause error) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	t.over = true
	id := spans.Attribute{Key: "container.id", Value: container}
	if cause != nil {
		t.spans.Fail(wholeStart, "", t.from, now, cause, id)
	} else {
		t.spans.Add(wholeStart, "", t.from, now, id)
	}
	text, err := t.spans.Encode(t.about...)
	if err != nil {
		return nil
	}
	return text
}

// starting is called when the start of a container's process is asked for.
func (t *trace) starting(at time.Time) {
	t.start.mu.Lock()
	created := t.start.created
	t.start.mu.Unlock()
	if !created.IsZero() {
		t.start.step("wait for start", created, at)
	}
}

// started is called when a container's process runs, or when nothing comes of the
// start that was traced. dir is the sandbox's directory.
func (t *trace) started(dir, container string, cause error) {
	text := t.start.end(container, time.Now(), cause)
	if text == nil {
		return
	}
	_ = replaceFile(filepath.Join(dir, startTraceFile), text)
	if t.path != "" {
		_ = replaceFile(filepath.Join(filepath.Dir(t.path), container+".otlp.json"), text)
	}
}
