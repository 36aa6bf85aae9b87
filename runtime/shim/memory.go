package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

const (
	// gcPercent trades a little time for memory: there is a shim per pod, and
	// it allocates little.
	gcPercent = 40

	// quietTime is how long nothing must have been made or taken apart before what
	// that needed is given back.
	quietTime = 2 * time.Second
)

// thrift gives back to the system what a start, an exec or an end has left behind: a
// shim of a pod that runs has nothing to do for days. It owns a timer.
type thrift struct {
	timer *time.Timer
}

func newThrift(logger *log.Entry) *thrift {
	return &thrift{time.AfterFunc(quietTime, func() {
		if err := giveBack(); err != nil {
			logger.WithError(err).Debug("memory of the shim is not given back")
		}
	})}
}

// watch is an interceptor of the server. What only looks at things, as a kubelet does
// every few seconds, leaves next to nothing behind.
func (t *thrift) watch(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	reply, err := method(ctx, unmarshal)
	switch path.Base(info.FullMethod) {
	case "Create", "Start", "Exec", "Delete", "CreateSandbox", "StartSandbox":
		t.timer.Reset(quietTime)
	}
	return reply, err
}

func (t *thrift) stop() { t.timer.Stop() }

// giveBack returns the heap that is free, and lets go of the program's own pages. Of
// these two thirds were needed for the start alone, and the kernel takes mapped pages
// last; what is needed again comes out of the page cache.
func giveBack() error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(maps)) {
		start, end, ok := readOnly(line, program)
		if !ok {
			continue
		}
		// Nothing was written to a page of these, so none loses its content.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %x-%x: %w", start, end, errno))
		}
	}
	return errors.Join(errs...)
}

// readOnly reads a line of /proc/self/maps (proc(5)), and says whether it is a part of
// the program that cannot be written to.
func readOnly(line, program string) (start, end uintptr, ok bool) {
	var perms string
	if _, err := fmt.Sscanf(line, "%x-%x %s ", &start, &end, &perms); err != nil {
		return 0, 0, false
	}
	return start, end, end > start && len(perms) == 4 && perms[1] == '-' && strings.HasSuffix(strings.TrimSpace(line), " "+program)
}
