package sandbox

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// keptCopies is what the guest has of the host's files; the fakeAgent's mutex
// guards it.
type keptCopies struct {
	content map[string]string // by container and path
	removed []string          // so named
	steps   []step            // in their order
	more    chan struct{}     // closed after the next change, or try; made by who waits

	noCopies bool // the agent does not give them back
}

// serveCopies gives back and removes what a test has put into content.
func (a *fakeAgent) serveCopies(conn net.Conn, r streamwire.Request) {
	name := r.Container + "/" + r.Path
	a.mu.Lock()
	defer a.tell()
	content, there := a.content[name]
	if r.Operation == streamwire.Remove {
		a.removed = append(a.removed, name)
		a.steps = append(a.steps, step{removed: name})
	}
	a.mu.Unlock()
	if r.Operation == streamwire.Remove {
		_ = streamwire.WriteAnswer(conn, nil)
		return
	}
	if !there {
		_ = streamwire.WriteAnswer(conn, errdefs.ErrNotFound)
		return
	}
	_ = streamwire.WriteAnswer(conn, nil)
	var f streamwire.Frame
	for len(content) > 0 {
		n := copy(f.Room(), content)
		if f.Send(conn, n) != nil {
			return
		}
		content = content[n:]
	}
	_ = streamwire.SendEnd(conn)
}

// tell wakes up who waits for a change of the copies.
func (a *fakeAgent) tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.more != nil {
		close(a.more)
		a.more = nil
	}
}

func bindMount(destination, source, options string) string {
	return fmt.Sprintf(`{"destination":%q,"type":"bind","source":%q,"options":["rbind",%q]}`, destination, source, options)
}

// withMessage is a world with the container c, which runs and has a message in the
// host's file, and another file that it may write.
func withMessage(t *testing.T, agent *fakeAgent) (w *world, message, other string) {
	t.Helper()
	w = newWorld(t, agent)
	message, other = filepath.Join(w.dir, "message"), filepath.Join(w.dir, "hosts")
	for _, path := range []string{message, other} {
		if err := os.WriteFile(path, []byte("before"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	spec := bindSpec(bindMount("/etc/hosts", other, "rw"), bindMount("/dev/termination-log", message, "rw"))
	if _, err := w.Create(t.Context(), w.request(t, "c", spec)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	return w, message, other
}

func is(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s has %.40q, %v; want %.40q", path, got, err, want)
	}
}

func TestLastWordsAreOnTheHostBeforeTheEndIsKnown(t *testing.T) {
	w, message, other := withMessage(t, newFakeAgent())
	w.agent.mu.Lock()
	w.agent.content = map[string]string{"c/1": "why it ended", "c/0": "not for the host"}
	w.agent.mu.Unlock()
	w.agent.of(t, "c", "").exit(3)
	w.events.await(t, "exit c/ 3")
	is(t, message, "why it ended")
	is(t, other, "before")
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
}

// TestAContainerEndsWithoutItsLastWords where the guest has none, or too many of
// them.
func TestAContainerEndsWithoutItsLastWords(t *testing.T) {
	for name, change := range map[string]func(*fakeAgent){
		"none":             func(*fakeAgent) {},
		"too many":         func(a *fakeAgent) { a.content = map[string]string{"c/1": strings.Repeat("x", streamwire.MaxFetch+1)} },
		"an agent without": func(a *fakeAgent) { a.noCopies, a.content = true, map[string]string{"c/1": "why"} },
	} {
		t.Run(name, func(t *testing.T) {
			agent := newFakeAgent()
			change(agent)
			w, message, _ := withMessage(t, agent)
			w.agent.of(t, "c", "").exit(0)
			w.events.await(t, "exit c/ 0")
			is(t, message, "before")
		})
	}
}
