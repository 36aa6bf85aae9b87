package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// TestPluggedProcessorsComeOnline needs a VM of its own, whose guest is told that
// VMware runs it: under a TCG that it does not know, its kernel takes no processor
// that was not there at the start (see disguise in hypervisor/qemu).
func TestPluggedProcessorsComeOnline(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a VM; -short was given")
	}
	g := startGuest(t, "-smp", "1,cores=3,maxcpus=3",
		"-cpu", "max,la57=off,hypervisor=off", "-machine", "vmport=on", "-smbios", "type=1,serial=VMware-0")
	for core := 1; core < 3; core++ {
		g.monitor.do(t, "device_add", map[string]any{
			"driver": "max-x86_64-cpu", "id": fmt.Sprintf("cpu-%d", core), "socket-id": 0, "core-id": core, "thread-id": 0,
		})
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := g.agent.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 2, CpuOnly: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("2 processors online after %v", time.Since(began))
	ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := g.agent.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 1, CpuOnly: true}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a third: %v", err)
	}
	if err := g.client.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
