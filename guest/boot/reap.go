package boot

import (
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// ReapOrphans waits for the processes that lost their parents and fell to
// PID 1, for ever; it returns only when done is closed. It must run on the
// thread of main, which must never make a process.
//
// The kernel gives orphans to the main thread of PID 1 (kernel/exit.c,
// find_new_reaper), and a process that was made here stays with the thread that
// made it. So waiting only for children of this very thread (__WNOTHREAD) takes
// no exit status away from those who wait for their own children.
func ReapOrphans(done <-chan struct{}) {
	// A signal that arrives while one is pending is dropped, since one round
	// takes all that have ended.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		reap()
		select {
		case <-ended:
		case <-done:
			return
		}
	}
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
