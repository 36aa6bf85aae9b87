package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Span is a step of a start, from the spans that the shim writes beside its trace.
type Span struct {
	ID, Parent string
	Name       string
	Start, End time.Time
	Error      string // empty if it came to its end
}

// Spans reads the spans of the start whose container this is.
func (c *Containerd) Spans(container string) ([]Span, error) {
	return readSpans(filepath.Join(c.dirs.traces, container+".otlp.json"))
}

func readSpans(path string) ([]Span, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("spans: %w", err)
	}
	var file struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct {
					SpanID       string `json:"spanId"`
					ParentSpanID string `json:"parentSpanId"`
					Name         string `json:"name"`
					Start        string `json:"startTimeUnixNano"`
					End          string `json:"endTimeUnixNano"`
					Status       struct {
						Message string `json:"message"`
					} `json:"status"`
				} `json:"spans"`
			} `json:"scopeSpans"`
		} `json:"resourceSpans"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("spans in %s: %w", path, err)
	}
	var spans []Span
	for _, r := range file.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, one := range s.Spans {
				start, err := strconv.ParseInt(one.Start, 10, 64)
				if err != nil {
					return nil, fmt.Errorf("spans in %s: %w", path, err)
				}
				end, err := strconv.ParseInt(one.End, 10, 64)
				if err != nil {
					return nil, fmt.Errorf("spans in %s: %w", path, err)
				}
				spans = append(spans, Span{one.SpanID, one.ParentSpanID, one.Name, time.Unix(0, start), time.Unix(0, end), one.Status.Message})
			}
		}
	}
	return spans, nil
}

// Gap is a time in which none of the steps was under way.
type Gap struct {
	After string // the step that ended last
	Start time.Time
	Took  time.Duration
}

// Gaps are the times between start and end that no step of the spans covers: only
// those count that no other is a part of, since a step that has parts could hide what
// lies between these.
func Gaps(spans []Span, start, end time.Time) []Gap {
	parents := map[string]bool{}
	for _, s := range spans {
		parents[s.Parent] = true
	}
	steps := slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return parents[s.ID] })
	slices.SortFunc(steps, func(a, b Span) int { return a.Start.Compare(b.Start) })
	var gaps []Gap
	reached, last := start, "the beginning"
	for _, s := range append(steps, Span{Name: "the end", Start: end, End: end}) {
		if took := s.Start.Sub(reached); took > 0 && reached.Before(end) {
			gaps = append(gaps, Gap{last, reached, min(took, end.Sub(reached))})
		}
		if s.End.After(reached) {
			reached, last = s.End, s.Name
		}
	}
	return gaps
}
