package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// transports are the two ways of streams.
var transports = map[string]bool{"calls": false, "connections": true}

func TestAnExecLivesInContainerdsOrder(t *testing.T) {
	for name, wire := range transports {
		t.Run(name, func(t *testing.T) {
			agent := newFakeAgent()
			agent.wire = wire
			w := running(t, agent)
			p := w.startedExec(t, "e")
			p.stdout <- []byte("out\n")
			info, err := w.Info("c", "e")
			if err != nil || info.State != Running || info.Pid != fakePid || info.Exec != "e" || info.ID != "c" {
				t.Errorf("%+v, %v", info, err)
			}
			if execs, err := w.Execs("c"); !slices.Equal(execs, []string{"e"}) || err != nil {
				t.Errorf("execs %v, %v", execs, err)
			}
			p.exit(7)
			exit, err := w.Wait(t.Context(), "c", "e")
			if err != nil || exit.Status != 7 || exit.At.IsZero() {
				t.Errorf("%+v, %v", exit, err)
			}
			if out, _ := os.ReadFile(filepath.Join(w.dir, "e")); string(out) != "out\n" {
				t.Errorf("the output is %q when the exit is known", out)
			}
			if info, err := w.Delete(t.Context(), "c", "e"); err != nil || info.Exit.Status != 7 || info.Pid != fakePid {
				t.Errorf("%+v, %v", info, err)
			}
			if _, err := w.Info("c", "e"); !errdefs.IsNotFound(err) {
				t.Errorf("after Delete: %v", err)
			}
			w.agent.of(t, "c", "").exit(0)
			w.events.await(t, "exit c/ 0")
			if _, err := w.Delete(t.Context(), "c", ""); err != nil {
				t.Error(err)
			}
			want := []string{"create c", "start c", "exec-added c/e", "exec-started c/e", "exit c/e 7", "exit c/ 0", "delete c 0"}
			if got := w.events.all(); !slices.Equal(got, want) {
				t.Errorf("events %q\nwant %q", got, want)
			}
		})
	}
}

func TestInputReachesTheProcessAndEnds(t *testing.T) {
	for name, wire := range transports {
		t.Run(name, func(t *testing.T) {
			agent := newFakeAgent()
			agent.wire = wire
			w := running(t, agent)
			fifo := filepath.Join(w.dir, "in")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			err := w.Exec(&ExecRequest{ID: "c", Exec: "e", Process: &pb.Process{}, Streams: stdio.Paths{Stdin: fifo}})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.CloseStdin("c", "e"); err != nil { // before its start: counts from there
				t.Fatal(err)
			}
			client, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.WriteString("hello"); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Start(t.Context(), "c", "e"); err != nil {
				t.Fatal(err)
			}
			p := w.agent.of(t, "c", "e")
			if got := string(<-p.stdin); got != "hello" {
				t.Errorf("input %q", got)
			}
			_ = client.Close()
			if rest, more := <-p.stdin; more {
				t.Errorf("input %q after its end", rest)
			}
			p.exit(0)
			w.events.await(t, "exit c/e 0")
		})
	}
}

func TestTheExitOfAContainerIsTheLast(t *testing.T) {
	w := running(t, newFakeAgent())
	w.startedExec(t, "a")
	w.startedExec(t, "b").stdout <- []byte("unread")
	w.exec(t, "never")
	waited := make(chan Exit, 1)
	go func() {
		exit, err := w.Wait(context.Background(), "c", "never")
		if err != nil {
			t.Error(err)
		}
		waited <- exit
	}()
	w.agent.of(t, "c", "").exit(3) // the execs do not die with it here: they are killed
	w.events.await(t, "exit c/ 3")
	events := w.events.all()
	if !slices.Contains(events, "exit c/a 137") || !slices.Contains(events, "exit c/b 137") || events[len(events)-1] != "exit c/ 3" {
		t.Errorf("events %q", events)
	}
	if exit := <-waited; exit.Status != statusNever {
		t.Errorf("who waits for an exec that never ran is told %d", exit.Status)
	}
	if _, err := w.Start(t.Context(), "c", "never"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("start of an exec afterwards: %v", err)
	}
	if err := w.Exec(&ExecRequest{ID: "c", Exec: "x"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("exec afterwards: %v", err)
	}
}

func TestAnExitThatOvertakesTheStartWaitsForIt(t *testing.T) {
	w := running(t, newFakeAgent())
	w.exec(t, "e")
	held, release := w.agent.holding("ExecProcess")
	started := make(chan error, 1)
	go func() {
		_, err := w.Start(context.Background(), "c", "e")
		started <- err
	}()
	<-held
	w.agent.of(t, "c", "e").exit(5) // before its start has been answered
	release()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	w.events.await(t, "exit c/e 5")
	if got, want := w.events.all()[2:], []string{"exec-added c/e", "exec-started c/e", "exit c/e 5"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestAnExecThatIsStartedWhileItsContainerEndsEndsToo(t *testing.T) {
	w := running(t, newFakeAgent())
	w.exec(t, "e")
	held, release := w.agent.holding("ExecProcess")
	started := make(chan error, 1)
	go func() {
		_, err := w.Start(context.Background(), "c", "e")
		started <- err
	}()
	<-held
	// The guest does not know the exec yet when it is killed.
	w.agent.failing("SignalProcess", errdefs.ErrNotFound)
	w.agent.of(t, "c", "").exit(0)
	for c := w.containers["c"]; !c.isEnding(); {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the end of the container was not seen")
		}
	}
	w.agent.failing("SignalProcess", nil)
	release()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	w.events.await(t, "exit c/ 0")
	if got, want := w.events.all()[3:], []string{"exec-started c/e", "exit c/e 137", "exit c/ 0"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

func TestAStartThatFailsSaysWhyAndHangsNobody(t *testing.T) {
	w := running(t, newFakeAgent())
	w.exec(t, "e")
	why := `exec: "nothing": executable file not found in $PATH`
	w.agent.failing("ExecProcess", errors.New(why))
	waited := make(chan error, 1)
	go func() {
		_, err := w.Wait(context.Background(), "c", "e")
		waited <- err
	}()
	if _, err := w.Start(t.Context(), "c", "e"); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("%v", err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if _, err := w.Start(t.Context(), "c", "e"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if info, err := w.Info("c", "e"); err != nil || info.State != Stopped || info.Exit.Status != statusNever {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := w.Delete(t.Context(), "c", "e"); err != nil {
		t.Error(err)
	}
	if got, want := w.events.all()[2:], []string{"exec-added c/e"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	w.agent.failing("ExecProcess", nil)
	w.startedExec(t, "e") // the id is free again
}

func TestAnExecThatNobodyStartedIsDeletedWithoutAFailure(t *testing.T) {
	w := running(t, newFakeAgent())
	w.exec(t, "e")
	if info, err := w.Delete(t.Context(), "c", "e"); err != nil || info.Exit.Status != 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestExecsThatCannotBeAreRefused(t *testing.T) {
	w := running(t, newFakeAgent())
	w.exec(t, "e")
	for _, tc := range []struct {
		id, exec string
		class    func(error) bool
	}{
		{"c", "e", errdefs.IsAlreadyExists}, {"c", "../e", errdefs.IsInvalidArgument},
		{"c", "c", errdefs.IsInvalidArgument}, // the guest's name for the first process
		{"c", "", errdefs.IsInvalidArgument}, {"d", "e", errdefs.IsNotFound},
	} {
		if err := w.Exec(&ExecRequest{ID: tc.id, Exec: tc.exec}); !tc.class(err) {
			t.Errorf("%s/%s: %v", tc.id, tc.exec, err)
		}
	}
	if err := w.Kill(t.Context(), "c", "e", syscall.SIGTERM, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill of one that is not started: %v", err)
	}
	if err := w.Pause(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := w.Exec(&ExecRequest{ID: "c", Exec: "f"}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("exec in a paused container: %v", err)
	}
	if _, err := w.Start(t.Context(), "c", "e"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "paused") {
		t.Errorf("start in a paused container: %v", err)
	}
}

func TestARunningExecIsNotDeleted(t *testing.T) {
	w := running(t, newFakeAgent())
	p := w.startedExec(t, "e")
	if _, err := w.Delete(t.Context(), "c", "e"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "running") {
		t.Errorf("%v", err)
	}
	p.exit(0)
	w.events.await(t, "exit c/e 0")
	if err := w.Kill(t.Context(), "c", "e", syscall.SIGKILL, false); !errdefs.IsNotFound(err) {
		t.Errorf("kill after the end: %v", err)
	}
}

func TestSignalsReachWhatTheyAreFor(t *testing.T) {
	w := running(t, newFakeAgent())
	w.startedExec(t, "e")
	for _, tc := range []struct {
		exec string
		sig  syscall.Signal
		all  bool
		want []string
	}{
		{"", syscall.SIGTERM, false, []string{"SignalProcess c/c 15"}},
		{"", syscall.SIGTERM, true, []string{"SignalProcess c/ 15"}},
		{"e", syscall.SIGHUP, false, []string{"SignalProcess c/e 1"}},
		{"", syscall.SIGKILL, true, []string{"SignalProcess c/ 9"}},
	} {
		before := len(w.agent.made())
		if err := w.Kill(t.Context(), "c", tc.exec, tc.sig, tc.all); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(w.agent.made()[before:], func(c string) bool { return !strings.HasPrefix(c, "SignalProcess") })
		if len(got) > len(tc.want) && tc.sig == syscall.SIGKILL {
			got = got[:len(tc.want)] // the execs are killed when the container has ended
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s to %q, all %v: %q, want %q", tc.sig, tc.exec, tc.all, got, tc.want)
		}
	}
}

func TestTheVMsEndIsThatOfExecsAndThenOfTheirContainer(t *testing.T) {
	for name, wire := range transports {
		t.Run(name, func(t *testing.T) {
			agent := newFakeAgent()
			agent.wire = wire
			w := running(t, agent)
			w.startedExec(t, "e")
			w.exec(t, "never")
			w.vm.end(errors.New("it is gone"))
			w.events.await(t, "exit c/ 137")
			want := []string{"exec-added c/e", "exec-started c/e", "exec-added c/never", "exit c/e 137", "exit c/ 137"}
			if got := w.events.all()[2:]; !slices.Equal(got, want) {
				t.Errorf("events %q, want %q", got, want)
			}
			if _, err := w.Wait(t.Context(), "c", "never"); err != nil {
				t.Error(err)
			}
			if _, err := w.Delete(t.Context(), "c", ""); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestATerminalHasItsSizeFromTheFirstByte(t *testing.T) {
	w := running(t, newFakeAgent())
	err := w.Exec(&ExecRequest{ID: "c", Exec: "e", Process: &pb.Process{Terminal: true}, Streams: stdio.Paths{Terminal: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Resize(t.Context(), "c", "e", 40, 132); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "c", "e"); err != nil {
		t.Fatal(err)
	}
	if size := w.agent.execs[0].GetProcess().GetConsoleSize(); size.GetHeight() != 40 || size.GetWidth() != 132 {
		t.Errorf("started with %v", size)
	}
	if err := w.Resize(t.Context(), "c", "e", 50, 100); err != nil || !slices.Contains(w.agent.made(), "TtyWinResize e 50 100") {
		t.Errorf("%v, calls %q", err, w.agent.made())
	}
	if err := w.Resize(t.Context(), "c", "", 50, 100); err != nil || slices.Contains(w.agent.made(), "TtyWinResize  50 100") {
		t.Errorf("without a terminal: %v, calls %q", err, w.agent.made())
	}
	w.agent.of(t, "c", "e").exit(0)
	w.events.await(t, "exit c/e 0")
	if err := w.Resize(t.Context(), "c", "e", 50, 100); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after the end: %v", err)
	}
}

func TestManyShortExecsLeaveNothing(t *testing.T) {
	for name, wire := range transports {
		t.Run(name, func(t *testing.T) {
			agent := newFakeAgent()
			agent.wire = wire
			w := running(t, agent)
			open := func() int {
				entries, err := os.ReadDir("/proc/self/fd")
				if err != nil {
					t.Fatal(err)
				}
				return len(entries)
			}
			var before int
			for i := range 60 {
				id := fmt.Sprintf("e%d", i)
				p := w.startedExec(t, id)
				p.exit(i % 3)
				if exit, err := w.Wait(t.Context(), "c", id); err != nil || exit.Status != i%3 {
					t.Fatalf("%+v, %v", exit, err)
				}
				if _, err := w.Delete(t.Context(), "c", id); err != nil {
					t.Fatal(err)
				}
				if i == 9 {
					before = open()
				}
			}
			if after := open(); after > before+8 { // the fake guest closes its ends when it gets to it
				t.Errorf("%d descriptors after 10 execs, %d after 60", before, after)
			}
			if n := len(w.containers["c"].execs); n != 0 {
				t.Errorf("%d execs are remembered", n)
			}
		})
	}
}
