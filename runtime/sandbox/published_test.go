package sandbox

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/test/atomicdir"
)

// guestTree is what the requests so far have made of the copies in the guest, links
// with their targets, other files with their content.
func (a *fakeAgent) guestTree() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	tree := map[string]string{}
	for _, step := range a.steps {
		if step.removed != "" {
			for name := range tree {
				if name == step.removed || strings.HasPrefix(name, step.removed+"/") {
					delete(tree, name)
				}
			}
			continue
		}
		tree[strings.TrimPrefix(step.copied.GetPath(), guestCopies(""))] = string(step.copied.GetData())
	}
	return tree
}

// read reads a file of the container's copy as its processes would, "" if there is
// none.
func read(tree map[string]string, mount, name string) string {
	return tree[path.Join(mount, tree[mount+"/..data"], name)]
}

// step is a change of the copies in the guest.
type step struct {
	copied  *pb.CopyFileRequest
	removed string
}

// volume is a directory that a kubelet keeps.
func volume(t *testing.T, payload map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	publish(t, dir, payload)
	return dir
}

func publish(t *testing.T, dir string, payload map[string]string) {
	t.Helper()
	if err := atomicdir.Write(dir, payload); err != nil {
		t.Fatal(err)
	}
}

// until waits until what the guest has is as it should be.
func (a *fakeAgent) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		a.mu.Lock()
		if a.more == nil {
			a.more = make(chan struct{})
		}
		more := a.more
		a.mu.Unlock()
		if done() {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func names(tree map[string]string, mount string) []string {
	var list []string
	for name := range tree {
		if rest, ok := strings.CutPrefix(name, mount+"/"); ok && !strings.HasPrefix(rest, "..2026") {
			list = append(list, rest)
		}
	}
	slices.Sort(list)
	return list
}

func TestWhatAKubeletPublishesIsInTheGuestAtOnceAndWhole(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	dir := volume(t, map[string]string{"a": "old a", "b": "old b", "sub/x": "old x"})
	spec := bindSpec(bindMount("/config", dir, "ro"))
	if _, err := w.Create(t.Context(), w.request(t, "c", spec)); err != nil {
		t.Fatal(err)
	}
	tree := w.agent.guestTree()
	if read(tree, "c/0", "a") != "old a" || !slices.Equal(names(tree, "c/0"), []string{"..data", "a", "b", "sub"}) {
		t.Fatalf("at first the guest has %q", tree)
	}
	old := tree["c/0/..data"]

	publish(t, dir, map[string]string{"a": "new a", "c": "new c", "sub/x": "new x"})
	w.agent.until(t, "the new content", func() bool {
		tree := w.agent.guestTree()
		return slices.Equal(names(tree, "c/0"), []string{"..data", "a", "c", "sub"}) && tree["c/0/"+old+"/a"] == ""
	})
	tree = w.agent.guestTree()
	for name, want := range map[string]string{"a": "new a", "b": "", "c": "new c", "sub/x": "new x"} {
		if got := read(tree, "c/0", name); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	neverHalf(t, w.agent)
}

// neverHalf goes through the steps: at none of them could a process of the container
// see keys of two generations, or none.
func neverHalf(t *testing.T, agent *fakeAgent) {
	t.Helper()
	agent.mu.Lock()
	steps := slices.Clone(agent.steps)
	agent.mu.Unlock()
	replay := newFakeAgent()
	for i, s := range steps {
		replay.steps = append(replay.steps, s)
		tree := replay.guestTree()
		if tree["c/0/..data"] == "" {
			continue // not yet, in the beginning
		}
		a, x := read(tree, "c/0", "a"), read(tree, "c/0", "sub/x")
		if old, new := a == "old a" && x == "old x", a == "new a" && x == "new x"; !old && !new {
			t.Fatalf("after step %d, %v %q, a container sees %q and %q", i, s.copied.GetPath(), s.removed, a, x)
		}
	}
}

func TestAContainerThatIsGoneIsSentNothing(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	dir := volume(t, map[string]string{"a": "1"})
	for _, id := range []string{"c", "d"} {
		if _, err := w.Create(t.Context(), w.request(t, id, bindSpec(bindMount("/config", dir, "ro")))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	publish(t, dir, map[string]string{"a": "2"})
	w.agent.until(t, "the other container's", func() bool { return read(w.agent.guestTree(), "d/0", "a") == "2" })
	if got := read(w.agent.guestTree(), "c/0", "a"); got != "1" {
		t.Errorf("the container that is gone has %q", got)
	}
}

// TestContentThatCannotBeSentIsSentLater: a guest that does not answer once, and one
// whose agent removes nothing.
func TestContentThatCannotBeSentIsSentLater(t *testing.T) {
	agent := newFakeAgent()
	agent.noCopies = true
	w := newWorld(t, agent)
	dir := volume(t, map[string]string{"a": "1"})
	if _, err := w.Create(t.Context(), w.request(t, "c", bindSpec(bindMount("/config", dir, "ro")))); err != nil {
		t.Fatal(err)
	}
	agent.failing("CopyFile", errors.New("busy"))
	publish(t, dir, map[string]string{"a": "2"})
	before := len(agent.made())
	agent.until(t, "a try", func() bool {
		return slices.Contains(agent.made()[before:], "CopyFile "+guestCopies("c")+"/0/"+mustLink(t, dir))
	})
	agent.failing("CopyFile", nil)
	agent.until(t, "the content", func() bool { return read(agent.guestTree(), "c/0", "a") == "2" })
	agent.mu.Lock()
	defer agent.mu.Unlock()
	if len(agent.removed) != 0 {
		t.Errorf("removed %q", agent.removed)
	}
}

func mustLink(t *testing.T, dir string) string {
	t.Helper()
	to, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// TestTooMuchIsNotSentLater: the bound holds for what is published later too.
func TestTooMuchIsNotSentLater(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.config.Mounts.CopyFiles = 5
	dir := volume(t, map[string]string{"a": "1"})
	req := w.request(t, "c", bindSpec(bindMount("/config", dir, "ro")))
	if _, err := w.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	publish(t, dir, map[string]string{"a": "2", "b": "2"})
	c, m := w.containers["c"], w.machine
	c.unfollow()
	if err := c.published[0].refresh(context.Background()); err == nil || !strings.Contains(err.Error(), "mounts.copy_files") {
		t.Errorf("%v", err)
	}
	m.follow(c)
	if got := read(w.agent.guestTree(), "c/0", "a"); got != "1" {
		t.Errorf("the container has %q", got)
	}
}

// TestAFileMayBecomeADirectory, and the other way round.
func TestAFileMayBecomeADirectory(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	dir := volume(t, map[string]string{"a": "1"})
	if _, err := w.Create(t.Context(), w.request(t, "c", bindSpec(bindMount("/config", dir, "ro")))); err != nil {
		t.Fatal(err)
	}
	c := w.containers["c"]
	c.unfollow()
	if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.published[0].refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "other")), os.Mkdir(filepath.Join(dir, "other"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := c.published[0].refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.agent.mu.Lock()
	defer w.agent.mu.Unlock()
	last := w.agent.copied[len(w.agent.copied)-1]
	if !slices.Contains(w.agent.removed, "c/0/other") || last.GetFileMode()&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("removed %q, then made %v", w.agent.removed, last)
	}
}
