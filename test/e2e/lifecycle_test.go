package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestSignalsReachTheProcess: a signal that is caught is caught, and SIGKILL
// ends what catches everything else.
func TestSignalsReachTheProcess(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c",
		"trap 'echo got TERM' TERM; trap 'echo got USR1' USR1; echo ready; while :; do read -t 1 x; done < /dev/zero"}})
	c.Stdout.WaitFor(t, "ready")
	c.Kill(t, syscall.SIGTERM)
	c.Stdout.WaitFor(t, "got TERM")
	c.Kill(t, syscall.SIGUSR1)
	c.Stdout.WaitFor(t, "got USR1")
	c.Kill(t, syscall.SIGKILL)
	if code := c.WaitExit(t); code != 137 {
		t.Errorf("code %d, want 137", code)
	}
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Step)
	defer cancel()
	if err := c.Task.Kill(ctx, syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("kill of a process that has ended: %v, want NotFound", err)
	}
	c.Delete(t)
}

// TestAKillWhileTheGuestBoots is answered at once and ends the create, which
// says why.
func TestAKillWhileTheGuestBoots(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
	defer cancel()
	var stderr bytes.Buffer
	ctr := bed.Ctr(ctx, "run", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
		"--snapshotter", harness.Snapshotter, image, "killed", "true")
	ctr.Stderr = &stderr
	if err := ctr.Start(); err != nil {
		t.Fatal(err)
	}
	if err := bed.WaitForSandbox(ctx); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_, err := bed.Client().TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: "killed", Signal: uint32(syscall.SIGKILL)})
	if err != nil {
		t.Errorf("kill: %v", err)
	}
	t.Logf("the kill was answered after %v", time.Since(begun).Round(time.Millisecond))
	if err := ctr.Wait(); err == nil || !strings.Contains(stderr.String(), "killed while it was being created") {
		t.Errorf("ctr run: %v: %s", err, stderr.String())
	}
	if err := bed.RemoveContainers(ctx); err != nil {
		t.Error(err)
	}
}

// TestStatesAsTheTaskLives: created, running, stopped, with a pid that is a
// process of the host; what is illegal in a state is refused.
func TestStatesAsTheTaskLives(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	c, err := bed.Create(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "echo up; sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
	defer cancel()
	expect := func(want client.ProcessStatus) {
		t.Helper()
		status, err := c.Task.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if status.Status != want {
			t.Fatalf("state %s, want %s", status.Status, want)
		}
	}
	expect(client.Created)
	if _, err := c.Task.Delete(ctx); err == nil {
		t.Error("a task that is created and not killed could be deleted")
	}
	if err := c.Task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	expect(client.Running)
	c.Stdout.WaitFor(t, "up")
	if err := c.Task.Start(ctx); err == nil {
		t.Error("a running task could be started again")
	}
	if _, err := c.Task.Delete(ctx); err == nil {
		t.Error("a running task could be deleted")
	}

	pids, err := c.Task.Pids(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(pids) == 0 || pids[0].Pid != c.Task.Pid() {
		t.Errorf("pids %v, task pid %d", pids, c.Task.Pid())
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.Task.Pid())); err != nil || !strings.HasPrefix(string(name), "qemu-system") {
		t.Errorf("pid %d is %q (%v), want QEMU", c.Task.Pid(), name, err)
	}

	if err := c.Task.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	expect(client.Paused)
	if err := c.Task.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	expect(client.Running)
	if _, err := c.Task.Checkpoint(ctx); !errdefs.IsNotImplemented(err) {
		t.Errorf("checkpoint: %v, want Unimplemented", err)
	}

	c.Kill(t, syscall.SIGKILL)
	c.WaitExit(t)
	expect(client.Stopped)
	if again, err := c.Task.Wait(ctx); err != nil {
		t.Errorf("wait after the exit: %v", err)
	} else if status := <-again; status.ExitCode() != 137 {
		t.Errorf("wait after the exit: code %d", status.ExitCode())
	}
	if status := c.Delete(t); status.ExitCode() != 137 {
		t.Errorf("delete says code %d", status.ExitCode())
	}
}

// TestEventsComeOnceAndInOrder, whatever the process does at its start.
func TestEventsComeOnceAndInOrder(t *testing.T) {
	bed := e2etest.Newest(t)
	image := bed.Image(t, "one", harness.Snapshotter)
	all := bed.Events(t, "")
	c, code := bed.Run(t, e2etest.Spec{Image: image, Args: []string{"true"}})
	if code != 0 {
		t.Errorf("code %d", code)
	}
	got := all.Of(t, c.ID)
	if want := []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestContainerdRestarts: a containerd that comes back finds the running task
// through Connect and Pids, its exec and its exit through Wait, and the streams
// that were open go on. It is told what happened while there was none, once.
func TestContainerdRestarts(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Own(t, harness.Options{Release: release, LogLevel: "trace"}) // which has each event
			image := bed.Image(t, "one", harness.Snapshotter)
			c := bed.Start(t, e2etest.Spec{Image: image, Args: []string{"sh", "-c", "echo up; sleep 1000"}})
			c.Stdout.WaitFor(t, "up")
			pid := c.Task.Pid()
			unseen, end := execThatWaits(t, c, "6")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			e, err := c.Exec(t, r, c.Process(t, "sh", "-c", "echo up; read line; echo $line; exit 5"))
			if err != nil {
				t.Fatal(err)
			}
			e.Stdout.WaitFor(t, "up")

			ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
			defer cancel()
			if err := bed.RestartAfter(ctx, end); err != nil {
				t.Fatal(err)
			}
			all := bed.Events(t, c.ID)
			container, err := bed.Client().LoadContainer(ctx, c.ID)
			if err != nil {
				t.Fatal(err)
			}
			task, err := container.Task(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if task.Pid() != pid {
				t.Errorf("pid %d after the restart, %d before", task.Pid(), pid)
			}
			ending, err := task.LoadProcess(ctx, unseen.Process.ID(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if status, err := ending.Delete(ctx); err != nil || status.ExitCode() != 6 {
				t.Errorf("the exec that ended meanwhile: %v with %d, want 6", err, status.ExitCode())
			}
			unseen.Adopt(nil)
			process, err := task.LoadProcess(ctx, e.Process.ID(), nil)
			if err != nil {
				t.Fatal(err)
			}
			ended, err := process.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(w, "said after the restart")
			if status := <-ended; status.ExitCode() != 5 {
				t.Errorf("the exec ends with %d (%v), want 5", status.ExitCode(), status.Error())
			}
			e.Stdout.WaitFor(t, "said after the restart")
			if _, err := process.Delete(ctx); err != nil {
				t.Errorf("delete the exec: %v", err)
			}
			e.Adopt(nil)
			exit, err := task.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if status := <-exit; status.ExitCode() != 137 {
				t.Errorf("code %d (%v), want 137", status.ExitCode(), status.Error())
			}
			c.Adopt(container, task)
			c.Delete(t)
			all.Until(t, "/tasks/delete")
			log, err := os.ReadFile(bed.LogFile())
			if told := bytes.Count(log, []byte(`msg="event forwarded" ns=erofsvm topic=/tasks/exit`)); err != nil || told != 3 {
				t.Errorf("%d exits were told, %v, want one of each process", told, err)
			}
		})
	}
}

// execThatWaits is an exec that ends with a code when it is told to.
func execThatWaits(t *testing.T, c *e2etest.Container, code string) (e *e2etest.Exec, end func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if e, err = c.Exec(t, r, c.Process(t, "sh", "-c", "echo up; read line; echo over; exit "+code)); err != nil {
		t.Fatal(err)
	}
	e.Stdout.WaitFor(t, "up")
	return e, func() {
		t.Helper()
		fmt.Fprintln(w)
		e.Stdout.WaitFor(t, "over")
	}
}

// TestContainerdRestartsWhileAContainerIsCreated: nothing of the container is
// left, and the next one can be created.
func TestContainerdRestartsWhileAContainerIsCreated(t *testing.T) {
	for _, release := range harness.Releases {
		t.Run(release, func(t *testing.T) {
			bed := e2etest.Own(t, harness.Options{Release: release})
			spec := e2etest.Spec{Image: bed.Image(t, "one", harness.Snapshotter), Args: []string{"true"}}
			ctx, cancel := context.WithTimeout(bed.Context(t.Context()), e2etest.Boot)
			defer cancel()
			restarted := make(chan error, 1)
			go func() {
				err := bed.WaitForSandbox(ctx)
				if err == nil {
					err = bed.Restart(ctx)
				}
				restarted <- err
			}()
			c, err := bed.Create(t, spec)
			if err == nil {
				t.Error("a container was created by a containerd that ended meanwhile")
			}
			if err := <-restarted; err != nil {
				t.Fatal(err)
			}
			c.Adopt(nil, nil) // their client is gone
			if err := bed.RemoveContainers(ctx); err != nil {
				t.Error(err)
			}
			if _, code := bed.Run(t, spec); code != 0 {
				t.Errorf("the next one ends with %d", code)
			}
		})
	}
}
