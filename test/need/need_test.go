package need

import (
	"errors"
	"fmt"
	"testing"
)

// recorder is a test of which it is known how it ended.
type recorder struct {
	testing.TB
	ended string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.ended = "failed: " + fmt.Sprintf(format, args...)
}

func (r *recorder) Skipf(format string, args ...any) {
	// Fatalf of a real test does not return.
	if r.ended == "" {
		r.ended = "skipped: " + fmt.Sprintf(format, args...)
	}
}

func TestWhatIsMissingFailsInCIAndSkipsElsewhere(t *testing.T) {
	for _, c := range []struct {
		ci   string
		err  error
		want string
	}{
		{"true", errors.New("no tool: make tools"), "failed: no tool: make tools"},
		{"", errors.New("no tool: make tools"), "skipped: no tool: make tools"},
		{"true", nil, ""},
		{"", nil, ""},
	} {
		t.Setenv("CI", c.ci)
		r := &recorder{}
		NoError(r, c.err)
		if r.ended != c.want {
			t.Errorf("with CI=%q and %v: %q, want %q", c.ci, c.err, r.ended, c.want)
		}
	}
}
