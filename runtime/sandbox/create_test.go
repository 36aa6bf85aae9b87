package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestFilesOfTheHostAreInTheGuestBeforeTheContainer(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", filepath.Join(source, "link")); err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"mounts":[
		{"destination":"/proc","type":"proc","source":"proc"},
		{"destination":"/config","type":"bind","source":%q,"options":["rbind","ro"]},
		{"destination":"/one","type":"bind","source":%q,"options":["bind"]}]}`, source, filepath.Join(source, "file"))
	if _, err := w.Create(t.Context(), w.request(t, "c", spec)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range w.agent.copied {
		got = append(got, fmt.Sprintf("%s %o %q", r.GetPath(), r.GetFileMode()&unix.S_IFMT, r.GetData()))
	}
	want := []string{
		`/run/kata-containers/shared/containers/c/1 40000 ""`,
		`/run/kata-containers/shared/containers/c/1/file 100000 "content"`,
		`/run/kata-containers/shared/containers/c/1/link 120000 "file"`,
		`/run/kata-containers/shared/containers/c/2 100000 "content"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("copied %q\nwant %q", got, want)
	}
	calls := slices.DeleteFunc(w.agent.made(), func(c string) bool {
		return !strings.HasPrefix(c, "CopyFile") && !strings.HasPrefix(c, "CreateContainer")
	})
	if len(calls) != 5 || calls[4] != "CreateContainer c" {
		t.Errorf("calls %q", calls)
	}
}

func TestCopiesBeyondTheLimitStartNoVM(t *testing.T) {
	source := t.TempDir()
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(source, fmt.Sprint(i)), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spec := fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"mounts":[
		{"destination":"/data","type":"bind","source":%q,"options":["rbind"]}]}`, source)
	for _, tc := range []struct {
		mib, files int
		key        string
	}{{2, 100, "mounts.copy_mib"}, {3, 3, "mounts.copy_files"}, {0, 0, "mounts.copy_files"}, {3, 4, ""}} {
		w := newWorld(t, newFakeAgent())
		w.config.Mounts.CopyMiB, w.config.Mounts.CopyFiles = tc.mib, tc.files
		_, err := w.Create(t.Context(), w.request(t, "c", spec))
		switch {
		case tc.key == "":
			if err != nil {
				t.Error(err)
			}
		case err == nil || !strings.Contains(err.Error(), tc.key) || !strings.Contains(err.Error(), "/data") || w.starts != 0:
			t.Errorf("%d MiB, %d files: %v, %d VMs started", tc.mib, tc.files, err, w.starts)
		}
	}
}

// hooked is a spec with hooks that append their name, and what they are told,
// to the file "hooks" in the bundle.
func hooked(createRuntime string) string {
	hook := func(script string) string {
		return fmt.Sprintf(`[{"path":"/bin/sh","args":["sh","-c",%q],"env":["PATH=/usr/bin:/bin"]}]`, script)
	}
	say := func(name string) string {
		return `echo "` + name + ` $(tr , '\n' | grep -E 'pid|status' | tr -d '\n{}"')" >> hooks`
	}
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"hooks":{
		"prestart":%s,"createRuntime":%s,"poststart":%s,"poststop":%s}}`,
		hook(say("prestart")), hook(createRuntime), hook(say("poststart")+"; exit 1"), hook(say("poststop")))
}

func TestHooksOfTheHostRunWhenTheyShould(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	req := w.request(t, "c", hooked("echo createRuntime >> hooks"))
	ran := func() string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(req.Bundle, "hooks"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(data)
	}
	want := ""
	check := func(after, more string) {
		t.Helper()
		want += more
		if got := ran(); got != want {
			t.Errorf("after %s: %q, want %q", after, got, want)
		}
	}
	if _, err := w.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	check("create", "prestart status:creatingpid:4242\ncreateRuntime\n")
	if _, err := w.Start(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	check("start", "poststart status:runningpid:4242\n") // its failure is logged
	w.agent.of(t, "c", "").exit(0)
	w.events.await(t, "exit c/ 0")
	check("the exit", "")
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	check("delete", "poststop status:stoppedpid:4242\n")
}

func TestAHookThatFailsUndoesTheCreation(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	_, err := w.Create(t.Context(), w.request(t, "c", hooked("echo no network >&2; exit 1")))
	if err == nil || !strings.Contains(err.Error(), "no network") {
		t.Errorf("%v", err)
	}
	if !slices.Contains(w.agent.made(), "SignalProcess c/ 9") || !slices.Contains(w.agent.made(), "RemoveContainer c") || !w.Empty() {
		t.Errorf("it is not taken apart: calls %q", w.agent.made())
	}
	if events := w.events.all(); len(events) != 0 {
		t.Errorf("events %q", events)
	}
}

func TestNamesThatTheGuestNeedsAreNoIds(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	for _, id := range []string{"shared", "sandbox", "..", ""} {
		req := w.request(t, "c", "")
		req.ID = id
		if _, err := w.Create(t.Context(), req); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestWhetherThereIsATerminalIsForTheRequestToSay(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	req := w.request(t, "c", `{"process":{"args":["x"],"cwd":"/","terminal":true},"root":{},"linux":{}}`)
	guest, err := readSpec(req.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	for _, terminal := range []bool{false, true} {
		req.Streams.Terminal = terminal
		if got, err := convert(guest, req, membership{}); err != nil || got.Spec.Process.Terminal != terminal {
			t.Errorf("%v: %v, %v", terminal, got.Spec, err)
		}
	}
}

// TestAVMThatEndsWhileAHookRunsEndsTheContainer: nobody else would.
func TestAVMThatEndsWhileAHookRunsEndsTheContainer(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	bundle := filepath.Join(w.dir, "c")
	created := make(chan error, 1)
	req := w.request(t, "c", hooked("mkfifo started; mkfifo go; echo > started; cat go"))
	go func() {
		_, err := w.Create(context.Background(), req)
		created <- err
	}()
	wait := func(name string, flag int) {
		t.Helper()
		path := filepath.Join(bundle, name)
		for {
			f, err := os.OpenFile(path, flag, 0)
			if err == nil {
				_, _ = f.Read(make([]byte, 1))
				_ = f.Close()
				return
			}
			select {
			case <-time.After(time.Millisecond):
			case <-t.Context().Done():
				t.Fatal(err)
			}
		}
	}
	wait("started", os.O_RDONLY)
	w.vm.end(errors.New("gone"))
	wait("go", os.O_WRONLY)
	if err := <-created; err != nil {
		t.Fatalf("Create saw it itself: %v", err)
	}
	w.events.await(t, "exit c/ 137")
}

// TestACreationOfWhichNobodyHearsLeavesAContainerThatHasEnded: the containerd that
// asked for it was restarted, and the next one has the task, to kill and to delete.
func TestACreationOfWhichNobodyHearsLeavesAContainerThatHasEnded(t *testing.T) {
	for _, first := range []string{"kill", "delete"} {
		t.Run(first, func(t *testing.T) {
			agent := newFakeAgent()
			held, release := agent.holding("CreateContainer")
			defer release()
			w := newWorld(t, agent)
			req := w.request(t, "c", "")
			req.Unheard = func() bool { return true }
			created := make(chan error, 1)
			go func() {
				_, err := w.Create(t.Context(), req)
				created <- err
			}()
			<-held
			if first == "kill" {
				if err := w.Kill(t.Context(), "c", "", syscall.SIGKILL, false); err != nil {
					t.Error(err)
				}
				if exit, err := w.Wait(t.Context(), "c", ""); err != nil || exit.Status != statusKilled {
					t.Errorf("it ends with %d, %v", exit.Status, err)
				}
				if info, err := w.Info("c", ""); err != nil || info.State != Stopped {
					t.Errorf("it is %s, %v", info.State, err)
				}
			}
			if info, err := w.Delete(t.Context(), "c", ""); err != nil || info.Exit.Status != statusKilled {
				t.Errorf("deleted with %d, %v", info.Exit.Status, err)
			}
			if err := <-created; !errors.Is(err, errAbandoned) {
				t.Errorf("the creation ends with %v", err)
			}
			if !w.Empty() || !slices.Contains(agent.made(), "RemoveContainer c") {
				t.Errorf("it is not taken apart: calls %q", agent.made())
			}
			if events, want := w.events.all(), []string{"create c", "exit c/ 137", "delete c 137"}; !slices.Equal(events, want) {
				t.Errorf("events %q, want %q", events, want)
			}
		})
	}
}

// TestWhoHangsUpFindsWhatIsBeingTakenApart: a containerd that is killed while a
// failed creation is undone, or while a container is deleted, is followed by one that
// has asked for the pids meanwhile and has the task.
func TestWhoHangsUpFindsWhatIsBeingTakenApart(t *testing.T) {
	agent := newFakeAgent()
	w := newWorld(t, agent)
	held, release := agent.holding("RemoveContainer")
	var hungUp atomic.Bool
	hangUp := func() {
		<-held
		if _, err := w.Info("c", ""); err != nil {
			t.Errorf("it is not there while it is taken apart: %v", err)
		}
		hungUp.Store(true)
		release()
	}
	remains := func(exit int) {
		t.Helper()
		if info, err := w.Info("c", ""); err != nil || info.State != Stopped || info.Exit.Status != exit {
			t.Errorf("it is %s with %d, %v", info.State, info.Exit.Status, err)
		}
	}

	agent.failing("CreateContainer", errors.New("a failure"))
	req := w.request(t, "c", "")
	req.Unheard = hungUp.Load
	go hangUp()
	if _, err := w.Create(t.Context(), req); err == nil {
		t.Error("it was created")
	}
	remains(statusKilled)

	// The next one is killed too while it deletes the task.
	agent.failing("CreateContainer", nil)
	if _, err := w.Create(t.Context(), w.request(t, "other", "")); err != nil { // so that there is a guest to ask
		t.Fatal(err)
	}
	if _, err := w.DeleteFor(t.Context(), "c", "", hungUp.Load); !errdefs.IsUnavailable(err) {
		t.Errorf("a deletion of which nobody hears: %v", err)
	}
	remains(statusKilled)
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Error(err)
	}
	if _, err := w.Delete(t.Context(), "other", ""); err != nil {
		t.Error(err)
	}
	if !w.Empty() {
		t.Error("something is left")
	}
	want := []string{"create c", "exit c/ 137", "create other", "delete c 137", "exit other/ 137", "delete other 137"}
	if events := w.events.all(); !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
}

// TestWaitEndsWithACreationThatFails, as there is nothing to wait for any more.
func TestWaitEndsWithACreationThatFails(t *testing.T) {
	agent := newFakeAgent()
	held, release := agent.holding("CreateContainer")
	agent.failing("CreateContainer", errors.New("a failure"))
	w := newWorld(t, agent)
	created, waited := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := w.Create(t.Context(), w.request(t, "c", ""))
		created <- err
	}()
	<-held
	p, _, err := w.find("c", "")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := w.wait(t.Context(), p)
		waited <- err
	}()
	release()
	if err := <-created; err == nil {
		t.Error("it was created")
	}
	if err := <-waited; !errdefs.IsNotFound(err) {
		t.Errorf("wait ends with %v, want NotFound", err)
	}
}

// TestDeleteGivesUpACreationAndWaitsForItsEnd, as a client that has gone away leaves
// it to containerd.
func TestDeleteGivesUpACreationAndWaitsForItsEnd(t *testing.T) {
	agent := newFakeAgent()
	held, release := agent.holding("CreateContainer")
	defer release()
	w := newWorld(t, agent)
	created := make(chan error, 1)
	go func() {
		_, err := w.Create(t.Context(), w.request(t, "c", ""))
		created <- err
	}()
	<-held
	if _, err := w.Delete(t.Context(), "c", ""); !errdefs.IsNotFound(err) {
		t.Errorf("delete: %v, want NotFound", err)
	}
	if !w.Empty() || !slices.Contains(agent.made(), "RemoveContainer c") {
		t.Errorf("it is not taken apart: calls %q", agent.made())
	}
	if err := <-created; !errors.Is(err, errAbandoned) {
		t.Errorf("the creation ends with %v", err)
	}
	if events := w.events.all(); len(events) > 0 {
		t.Errorf("events %q of a container that was not created", events)
	}
}
