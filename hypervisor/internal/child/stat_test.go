package child

import (
	"os"
	"strconv"
	"testing"
)

func TestStartTimeIsField22(t *testing.T) {
	for name, tc := range map[string]struct {
		stat string
		want uint64
		ok   bool
	}{
		"ordinary":             {"12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", 4711, true},
		"name with a bracket":  {"12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", 4711, true},
		"name with a newline":  {"12 (a\nb) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20", 4711, true},
		"too few fields":       {"12 (sh) S 1 2 3", 0, false},
		"no name":              {"12 sh S", 0, false},
		"nothing":              {"", 0, false},
		"start is not a count": {"12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x 20", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseStartTime([]byte(tc.stat))
			if got != tc.want || (err == nil) != tc.ok {
				t.Errorf("got %d, %v", got, err)
			}
		})
	}
	// That of PID 1 is before ours.
	first, err := startTime(1)
	if err != nil {
		t.Fatal(err)
	}
	own, err := startTime(os.Getpid())
	if err != nil || own <= first {
		t.Errorf("own start %d, that of PID 1 %d, %v", own, first, err)
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 " + strconv.Itoa(4711)))
	f.Fuzz(func(_ *testing.T, stat []byte) { _, _ = parseStartTime(stat) })
}
