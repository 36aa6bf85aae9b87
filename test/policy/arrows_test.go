package policy

import (
	"slices"
	"sort"
	"strings"
	"testing"
)

// theFour know nothing of each other; they meet in meetingPlace only.
var theFour = []string{"rootfs", "hypervisor", "network", "agentclient"}

const meetingPlace = "runtime/sandbox"

// mayImport says, for each room, what of this module its packages may import:
// a room or package stands for everything below it. A room's own packages are
// always allowed. The design's table of rooms, as data.
var mayImport = map[string][]string{
	"cmd":         {"runtime", "rootfs", "hypervisor", "network", "agentclient", "guest", "configs"},
	"runtime":     append([]string{"configs"}, theFour...),
	"rootfs":      {},
	"hypervisor":  {},
	"network":     {},
	"agentclient": {},
	"guest":       {"agentclient/pb", "agentclient/streamwire"}, // the messages of both protocols, not the client
	"configs":     {},
	"test":        {"cmd", "runtime", "rootfs", "hypervisor", "network", "agentclient", "guest", "configs"},
}

func room(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

func within(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, parent+"/")
}

// arrowError says what is wrong with dir importing target, "" if nothing is.
// Tests may also use the helpers below test/.
func arrowError(dir, target string, isTest bool) string {
	from := room(dir)
	allowed, known := mayImport[from]
	switch {
	case !known:
		return "is in no room of the house; give it one in mayImport"
	case room(target) == from:
		return ""
	case isTest && room(target) == "test":
		return ""
	case slices.ContainsFunc(allowed, func(a string) bool { return within(target, a) }):
		return ""
	}
	return "must not import " + target
}

func TestImportsPointOneWay(t *testing.T) {
	for _, f := range goFiles(t) {
		for _, target := range f.imports(t) {
			if wrong := arrowError(f.dir, target, f.isTest); wrong != "" {
				t.Errorf("%s: %s %s", f.path, f.dir, wrong)
			}
		}
	}
}

func TestTheFourMeetInOnePlace(t *testing.T) {
	meets := make(map[string]map[string]string) // package → which of the four → the file
	for _, f := range goFiles(t) {
		if f.isTest || room(f.dir) == "cmd" || room(f.dir) == "test" || f.dir == meetingPlace {
			continue
		}
		for _, target := range f.imports(t) {
			if slices.Contains(theFour, room(target)) {
				if meets[f.dir] == nil {
					meets[f.dir] = make(map[string]string)
				}
				meets[f.dir][room(target)] = f.path
			}
		}
	}
	for dir, seen := range meets {
		if len(seen) < 2 {
			continue
		}
		var parts []string
		for one, file := range seen {
			parts = append(parts, one+" ("+file+")")
		}
		sort.Strings(parts)
		t.Errorf("%s joins %s: only %s may", dir, strings.Join(parts, " and "), meetingPlace)
	}
}

// TestWrongArrowsAreSeen holds the rule itself: a table nobody can break would
// pass every tree.
func TestWrongArrowsAreSeen(t *testing.T) {
	for _, c := range []struct {
		dir, target string
		isTest      bool
		wrong       bool
	}{
		{dir: "rootfs/merge", target: "rootfs/erofs"},
		{dir: "rootfs", target: "hypervisor", wrong: true},
		{dir: "hypervisor/qemu", target: "rootfs", wrong: true},
		{dir: "hypervisor/qemu", target: "rootfs", isTest: true, wrong: true},
		{dir: "hypervisor/qemu", target: "test/harness", isTest: true},
		{dir: "hypervisor/qemu", target: "test/harness", wrong: true},
		{dir: "agentclient", target: "guest/layout", wrong: true},
		{dir: "guest/server", target: "agentclient/pb"},
		{dir: "guest/stream", target: "agentclient/streamwire"},
		{dir: "guest/server", target: "agentclient", wrong: true},
		{dir: "runtime/sandbox", target: "network"},
		{dir: "runtime/sandbox", target: "guest/layout", wrong: true},
		{dir: "runtime/shim", target: "cmd/erofsvm", wrong: true},
		{dir: "cmd/erofsvm", target: "rootfs"},
		{dir: "test/e2e", target: "rootfs"},
		{dir: "attic", target: "rootfs", wrong: true},
	} {
		if got := arrowError(c.dir, c.target, c.isTest); (got != "") != c.wrong {
			t.Errorf("%s importing %s (test: %v): %q", c.dir, c.target, c.isTest, got)
		}
	}
}
