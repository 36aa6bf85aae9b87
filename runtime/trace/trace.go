// Package trace records what a start consists of, as spans of OpenTelemetry, and
// writes them down as OTLP in JSON.
//
// A Trace belongs to one start. Any goroutine may add to it; nothing here waits, and
// nothing is sent anywhere: who wants the spans in a tracing system has its collector
// read the files (the receiver otlpjsonfile). docs/decisions/0022 says why.
package trace

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxSpans bounds a trace. A start has some thirty spans.
const maxSpans = 512

// Scope is the name of the instrumentation that the spans say they are from.
const Scope = "github.com/erofsvm/erofsvm/runtime"

// Attribute is a fact about a span or about the whole trace.
type Attribute struct{ Key, Value string }

// Trace collects the spans of one start.
type Trace struct {
	id     string // hex, 16 bytes
	caller string // hex, 8 bytes: the span that the trace is a part of; "" for none

	mu    sync.Mutex
	ids   map[string]string // by name: what a span, or a parent of one, is called
	spans []span
}

// span is a Span of opentelemetry/proto/trace/v1/trace.proto, in the encoding that
// the OTLP specification gives for JSON: ids in hex, 64-bit numbers as strings.
type span struct {
	TraceID      string      `json:"traceId"`
	SpanID       string      `json:"spanId"`
	ParentSpanID string      `json:"parentSpanId,omitempty"`
	Name         string      `json:"name"`
	Kind         int         `json:"kind"`
	Start        string      `json:"startTimeUnixNano"`
	End          string      `json:"endTimeUnixNano"`
	Attributes   []attribute `json:"attributes,omitempty"`
	Status       *status     `json:"status,omitempty"`
}

type attribute struct {
	Key   string `json:"key"`
	Value struct {
		String string `json:"stringValue"`
	} `json:"value"`
}

type status struct {
	Code    int    `json:"code"`
	Message string `json:"message,omitempty"`
}

const (
	kindInternal = 1 // SPAN_KIND_INTERNAL
	kindServer   = 2 // SPAN_KIND_SERVER
	statusError  = 2 // STATUS_CODE_ERROR
)

// New begins a trace. caller is the traceparent that came with the call which caused
// the start (W3C Trace Context), or anything else: then the trace is one of its own.
func New(caller string) *Trace {
	t := &Trace{ids: map[string]string{}}
	version, rest, _ := strings.Cut(caller, "-")
	fields := strings.Split(rest, "-")
	if len(version) == 2 && isHex(version) && version != "ff" && len(fields) >= 3 && isID(fields[0], 16) && isID(fields[1], 8) {
		t.id, t.caller = fields[0], fields[1]
	} else {
		t.id = newID(16)
	}
	return t
}

// isID says whether s names something: n bytes in lower-case hex that are not all 0.
func isID(s string, n int) bool {
	return len(s) == 2*n && isHex(s) && strings.Trim(s, "0") != ""
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

func newID(n int) string {
	id := make([]byte, n)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// Add records a step that has ended. parent is the name of the step that it was a part
// of, which may be recorded later, or "" for the first of all, of which the caller's
// span is the parent. Steps that are parents have names of their own.
func (t *Trace) Add(name, parent string, start, end time.Time, about ...Attribute) {
	t.add(name, parent, start, end, nil, about)
}

// Fail is Add for a step that did not come to its end.
func (t *Trace) Fail(name, parent string, start, end time.Time, cause error, about ...Attribute) {
	t.add(name, parent, start, end, &status{statusError, cause.Error()}, about)
}

func (t *Trace) add(name, parent string, start, end time.Time, s *status, about []Attribute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) == maxSpans {
		return
	}
	added := span{
		TraceID: t.id, SpanID: t.take(name), Name: name, Kind: kindInternal, ParentSpanID: t.caller,
		Start: nanoseconds(start), End: nanoseconds(end), Attributes: attributes(about), Status: s,
	}
	if parent != "" {
		added.ParentSpanID = t.idOf(parent)
	} else {
		added.Kind = kindServer
	}
	t.spans = append(t.spans, added)
}

// idOf is the id of the step with a name; t.mu is held.
func (t *Trace) idOf(name string) string {
	id, ok := t.ids[name]
	if !ok {
		id = newID(8)
		t.ids[name] = id
	}
	return id
}

// take is idOf for the step itself: the second of a name gets an id of its own.
func (t *Trace) take(name string) string {
	id := t.idOf(name)
	for i := range t.spans {
		if t.spans[i].SpanID == id {
			return newID(8)
		}
	}
	return id
}

func nanoseconds(at time.Time) string { return strconv.FormatInt(at.UnixNano(), 10) }

func attributes(about []Attribute) []attribute {
	var list []attribute
	for _, a := range about {
		one := attribute{Key: a.Key}
		one.Value.String = a.Value
		list = append(list, one)
	}
	return list
}

// file is TracesData of trace.proto.
type file struct {
	ResourceSpans []resourceSpans `json:"resourceSpans"`
}

type resourceSpans struct {
	Resource struct {
		Attributes []attribute `json:"attributes"`
	} `json:"resource"`
	ScopeSpans []scopeSpans `json:"scopeSpans"`
}

type scopeSpans struct {
	Scope struct {
		Name string `json:"name"`
	} `json:"scope"`
	Spans []span `json:"spans"`
}

// Encode is what there is, on one line, as a collector reads it. about is about whose
// spans they are.
func (t *Trace) Encode(about ...Attribute) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var of resourceSpans
	of.Resource.Attributes = attributes(about)
	of.ScopeSpans = []scopeSpans{{Spans: t.spans}}
	of.ScopeSpans[0].Scope.Name = Scope
	data, err := json.Marshal(file{[]resourceSpans{of}})
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}
