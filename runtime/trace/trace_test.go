package trace

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// decode reads a trace with the messages of OpenTelemetry, which refuse what they do
// not know.
func decode(t *testing.T, text []byte) []*tracepb.Span {
	t.Helper()
	var data tracepb.TracesData
	if err := protojson.Unmarshal(text, &data); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if len(data.ResourceSpans) != 1 || len(data.ResourceSpans[0].ScopeSpans) != 1 {
		t.Fatalf("%s", text)
	}
	return data.ResourceSpans[0].ScopeSpans[0].Spans
}

// id is what OTLP writes in hex and JSON of protobuf would read as base64.
func id(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func TestSpansAreOTLP(t *testing.T) {
	const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tr := New(caller)
	at := time.Unix(1_700_000_000, 123_456_789)
	tr.Add("child", "root", at.Add(time.Second), at.Add(2*time.Second), Attribute{"k", "v"})
	tr.Add("child", "root", at.Add(2*time.Second), at.Add(3*time.Second))
	tr.Fail("root", "", at, at.Add(4*time.Second), errors.New("no memory"))
	text, err := tr.Encode(Attribute{"service.name", "shim"})
	if err != nil || strings.Count(string(text), "\n") != 1 {
		t.Fatalf("%s, %v: a collector reads a trace from each line", text, err)
	}
	got := decode(t, text)
	if len(got) != 3 {
		t.Fatalf("%d spans", len(got))
	}
	child, again, root := got[0], got[1], got[2]
	for _, s := range got {
		if id(s.TraceId) != "0af7651916cd43dd8448eb211c80319c" || len(id(s.SpanId)) != 16 {
			t.Errorf("%s has trace %s and id %s", s.Name, id(s.TraceId), id(s.SpanId))
		}
		if _, err := hex.DecodeString(id(s.SpanId)); err != nil {
			t.Error(err)
		}
	}
	if id(root.ParentSpanId) != "b7ad6b7169203331" || id(child.ParentSpanId) != id(root.SpanId) || id(again.ParentSpanId) != id(root.SpanId) {
		t.Errorf("parents: %s, %s, %s", id(root.ParentSpanId), id(child.ParentSpanId), id(again.ParentSpanId))
	}
	if id(child.SpanId) == id(again.SpanId) {
		t.Error("two spans of a name have one id")
	}
	if root.StartTimeUnixNano != 1_700_000_000_123_456_789 || root.EndTimeUnixNano-root.StartTimeUnixNano != 4e9 {
		t.Errorf("from %d to %d", root.StartTimeUnixNano, root.EndTimeUnixNano)
	}
	if root.Kind != tracepb.Span_SPAN_KIND_SERVER || child.Kind != tracepb.Span_SPAN_KIND_INTERNAL {
		t.Errorf("kinds %s and %s", root.Kind, child.Kind)
	}
	if root.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || root.Status.GetMessage() != "no memory" || child.Status != nil {
		t.Errorf("status %v and %v", root.Status, child.Status)
	}
	if len(child.Attributes) != 1 || child.Attributes[0].Key != "k" || child.Attributes[0].Value.GetStringValue() != "v" {
		t.Errorf("attributes %v", child.Attributes)
	}
}

// TestOnlyAWholeCallerIsOne: what comes in metadata is anybody's.
func TestOnlyAWholeCallerIsOne(t *testing.T) {
	seen := map[string]bool{}
	for _, caller := range []string{
		"", "x", "00", "00-0af7651916cd43dd8448eb211c80319c", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01", "00-\"}]}}}00000000000000000000000000-b7ad6b7169203331-01",
	} {
		tr := New(caller)
		tr.Add("root", "", time.Now(), time.Now())
		text, err := tr.Encode()
		if err != nil {
			t.Fatal(err)
		}
		root := decode(t, text)[0]
		if trace := id(root.TraceId); len(root.ParentSpanId) != 0 || len(trace) != 32 || seen[trace] || strings.HasPrefix(trace, "0af7") {
			t.Errorf("%q: trace %s, parent %s", caller, trace, id(root.ParentSpanId))
		} else {
			seen[trace] = true
		}
	}
	// A later version may have more fields.
	if tr := New("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-else"); tr.caller != "b7ad6b7169203331" {
		t.Errorf("parent %q", tr.caller)
	}
}

func TestATraceIsBoundedAndForAnyGoroutine(t *testing.T) {
	tr := New("")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range maxSpans {
				tr.Add("step", "root", time.Now(), time.Now())
			}
		})
	}
	all.Wait()
	text, err := tr.Encode()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, s := range decode(t, text) {
		ids[id(s.SpanId)] = true
	}
	if len(ids) != maxSpans {
		t.Errorf("%d spans with ids of their own, want %d", len(ids), maxSpans)
	}
}

func FuzzCaller(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, caller string) {
		tr := New(caller)
		if !isID(tr.id, 16) || tr.caller != "" && !isID(tr.caller, 8) {
			t.Errorf("%q: %q, %q", caller, tr.id, tr.caller)
		}
	})
}
