package server

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/storage"
)

// What is refused is refused before anything is changed; what is taken is tried in a
// virtual machine (cmd/erofsvm-agent), whose clock and name may be changed.
func TestPersonaliseRefuses(t *testing.T) {
	g := &guest{containers: container.NewManager(container.Dirs{Base: t.TempDir(), State: t.TempDir()}, storage.System{}), root: t.TempDir()}
	seed := make([]byte, 64)
	for says, r := range map[string]*pb.PersonaliseRequest{
		"a seed of 0 bytes":   {},
		"a seed of 31 bytes":  {Entropy: seed[:31]},
		"a seed of 513 bytes": {Entropy: make([]byte, 513)},
		"time -1":             {Entropy: seed, UnixNanos: -1},
		"hostname":            {Entropy: seed, Hostname: "-pod"},
		"machine id":          {Entropy: seed, MachineId: strings.Repeat("A", 32)},
	} {
		_, err := g.Personalise(t.Context(), r)
		wantCode(t, toStatus(err), codes.InvalidArgument, says)
	}
	if entries, err := os.ReadDir(g.root); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestMachineIDIsReplaced(t *testing.T) {
	g := &guest{root: t.TempDir()}
	for _, id := range []string{strings.Repeat("0", 32), strings.Repeat("f", 32)} {
		if err := g.writeMachineID(id); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(filepath.Join(g.root, "etc/machine-id")); string(text) != id+"\n" || err != nil {
			t.Errorf("%q, %v", text, err)
		}
	}
}

func FuzzNamesAreWhatTheExpressionsSay(f *testing.F) {
	for _, s := range []string{"", "a", "a.b", "-a", "a-", "a_b", strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("0", 32), strings.Repeat("A", 32)} {
		f.Add(s)
	}
	host := regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
	machine := regexp.MustCompile(`^[0-9a-f]{32}$`)
	f.Fuzz(func(t *testing.T, s string) {
		if is := isHostname(s); is != host.MatchString(s) {
			t.Errorf("%q is a hostname: %v", s, is)
		}
		if is := isMachineID(s); is != machine.MatchString(s) {
			t.Errorf("%q is a machine id: %v", s, is)
		}
	})
}
