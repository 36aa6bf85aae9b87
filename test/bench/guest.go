package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// Names of what the agent says of a create, in its log.
const (
	guestDisks   = "in the guest: hot-plugged disks awaited"
	guestMounts  = "in the guest: mounts"
	guestProcess = "in the guest: process made (libcontainer)"
)

// logPort is the vsock port on which the agent tells its log.
const logPort = 1025

// guestSteps takes one sample of the steps of a create inside the guest.
func (b *bencher) guestSteps(ctx context.Context, i int) error {
	_, err := b.run(ctx, fmt.Sprintf("guest-%d", i), func(ctx context.Context, task client.Task) error {
		if err := b.readSteps(ctx); err != nil {
			return err
		}
		return task.Kill(ctx, syscall.SIGKILL)
	}, oci.WithProcessArgs("sleep", "1000"))
	return err
}

// readSteps reads the agent's log up to the line about the only container. It
// goes through the socket of vhost-device-vsock, whose protocol is a line
// "CONNECT <port>"; over the kernel's vsock there are no such rows.
func (b *bencher) readSteps(ctx context.Context) error {
	sockets, err := filepath.Glob(filepath.Join(b.c.SandboxDir(), "*", "vm", "vsock.sock"))
	if err != nil || len(sockets) == 0 {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", sockets[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", logPort); err != nil {
		return err
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var line struct {
			Text    string        `json:"msg"`
			Disks   time.Duration `json:"disks_took"`
			Mounts  time.Duration `json:"mounts_took"`
			Process time.Duration `json:"process_took"`
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Text != "container created" {
			continue // the answer to CONNECT, or about something else
		}
		b.results.add(guestDisks, line.Disks)
		b.results.add(guestMounts, line.Mounts)
		b.results.add(guestProcess, line.Process)
		return nil
	}
	return errors.Join(errors.New("the agent's log does not tell of the container"), lines.Err())
}
