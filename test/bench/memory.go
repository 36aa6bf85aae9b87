package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// settle is how long a container is left alone before the memory of its VM is looked
// at: the shim gives back what the start needed, and the guest goes on for a moment.
const settle = 3 * time.Second

// memory looks at the processes of one running container.
func (b *bencher) memory(ctx context.Context) error {
	look := func(ctx context.Context, task client.Task) error {
		time.Sleep(settle) // the shim gives back what the start needed
		for name, find := range map[string]func() ([]int, error){
			"shim": b.c.Shims, "QEMU": b.c.VMs, "vhost-device-vsock": b.c.VsockDaemons,
		} {
			pids, err := find()
			if err != nil {
				return err
			}
			for _, pid := range pids {
				rss, pss, err := rollup(pid)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				b.results.memory(name+" RSS", rss)
				b.results.memory(name+" PSS", pss)
			}
		}
		return task.Kill(ctx, syscall.SIGKILL)
	}
	if _, err := b.run(ctx, "memory", look, oci.WithProcessArgs("sleep", "1000")); err != nil {
		return err
	}
	return b.agentMemory(ctx)
}

// agentMemory asks a container that sees the guest's processes for PID 1, which
// is the agent.
func (b *bencher) agentMemory(ctx context.Context) error {
	took, err := b.run(ctx, "agent-memory", nil, oci.WithProcessArgs("cat", "/proc/1/comm", "/proc/1/status"),
		oci.WithHostNamespace(specs.PIDNamespace))
	if err != nil {
		return err
	}
	comm, status, _ := strings.Cut(took.output, "\n")
	if comm != "init" {
		return fmt.Errorf("the container does not see the guest's PID 1: %q", took.output)
	}
	rss, err := field(status, "VmRSS:")
	if err != nil {
		return err
	}
	b.results.memory("agent RSS, in the guest", rss)
	return nil
}

// rollup reads RSS and PSS of a process, in KiB: proc(5), smaps_rollup.
func rollup(pid int) (rss, pss int64, err error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, 0, err
	}
	if rss, err = field(string(text), "Rss:"); err != nil {
		return 0, 0, err
	}
	pss, err = field(string(text), "Pss:")
	return rss, pss, err
}

// field finds "Name:   123 kB".
func field(text, name string) (int64, error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if words := strings.Fields(lines.Text()); len(words) >= 2 && words[0] == name {
			return strconv.ParseInt(words[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no field %s", name)
}
