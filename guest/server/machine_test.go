package server

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// sysfs makes a tree with the files.
func sysfs(t *testing.T, files map[string]string) machine {
	t.Helper()
	m := machine{sys: t.TempDir()}
	for name, text := range files {
		path := filepath.Join(m.sys, "devices/system", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m machine) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.sys, "devices/system", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

var plugged = map[string]string{
	"cpu/cpu0/topology/core_id": "0\n", // has no file "online"
	"cpu/cpu1/online":           "1\n",
	"cpu/cpu2/online":           "0\n",
	"cpu/cpu10/online":          "0\n",
	"cpu/cpufreq/online":        "0\n",
	"cpu/online":                "0-1\n",
	"memory/memory0/state":      "online\n",
	"memory/memory32/state":     "offline\n",
	"memory/memory33/state":     "going-offline\n",
	"memory/auto_online_blocks": "offline\n",
	"memory/block_size_bytes":   "8000000\n",
}

func TestWhatIsOfflineComesOnline(t *testing.T) {
	a := &agent{machine: sysfs(t, plugged)}
	if _, err := a.OnlineCPUMem(t.Context(), &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 2}); err != nil {
		t.Fatal(err)
	}
	want := maps.Clone(plugged)
	want["cpu/cpu2/online"], want["cpu/cpu10/online"] = "1", "1"
	want["memory/memory32/state"], want["memory/auto_online_blocks"] = "online", "online"
	for _, name := range slices.Sorted(maps.Keys(want)) {
		// What was written is shorter than what was there, and a file keeps its rest.
		if got := a.machine.read(t, name); !strings.HasPrefix(got, strings.TrimSpace(want[name])) {
			t.Errorf("%s: %q, want %q", name, got, want[name])
		}
	}
}

func TestProcessorsOnlyLeavesMemory(t *testing.T) {
	a := &agent{machine: sysfs(t, plugged)}
	if _, err := a.OnlineCPUMem(t.Context(), &pb.OnlineCPUMemRequest{CpuOnly: true}); err != nil {
		t.Fatal(err)
	}
	if got := a.machine.read(t, "memory/memory32/state"); got != "offline" {
		t.Errorf("memory is %s", got)
	}
	if got := a.machine.read(t, "cpu/cpu2/online"); got != "1" {
		t.Errorf("the processor is %s", got)
	}
}

func TestProcessorThatComesLateIsAwaited(t *testing.T) {
	a := &agent{machine: sysfs(t, map[string]string{"cpu/cpu1/online": "1\n"})}
	answered := make(chan error, 1)
	go func() {
		_, err := a.OnlineCPUMem(t.Context(), &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 1, CpuOnly: true})
		answered <- err
	}()
	late := filepath.Join(a.machine.sys, "devices/system/cpu/cpu2")
	if err := os.Mkdir(late, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(late, "online.new"), []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(late, "online.new"), filepath.Join(late, "online")); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestProcessorThatDoesNotComeIsAnError(t *testing.T) {
	a := &agent{machine: sysfs(t, plugged)}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := a.OnlineCPUMem(ctx, &pb.OnlineCPUMemRequest{Wait: true, NbCpus: 3, CpuOnly: true})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 of 3") {
		t.Errorf("%v", err)
	}
	wantCode(t, toStatus(err), codes.DeadlineExceeded, "2 of 3")
}

func TestGuestThatCannotPlugHasNothingToDo(t *testing.T) {
	a := &agent{machine: sysfs(t, nil)}
	if _, err := a.OnlineCPUMem(t.Context(), &pb.OnlineCPUMemRequest{Wait: true}); err != nil {
		t.Error(err)
	}
}

func TestGuestDetails(t *testing.T) {
	a := &agent{machine: sysfs(t, plugged)}
	r, err := a.GetGuestDetails(t.Context(), &pb.GuestDetailsRequest{MemBlockSize: true, MemHotplugProbe: true})
	if err != nil || r.GetMemBlockSizeBytes() != 128<<20 || r.GetSupportMemHotplugProbe() {
		t.Errorf("%v, %v", r, err)
	}
	if !slices.Equal(r.GetAgentDetails().GetExtraFeatures(), []string{streamwire.Feature, streamwire.FilesFeature, streamwire.CopiesFeature, streamwire.PortsFeature}) {
		t.Errorf("features: %v", r.GetAgentDetails().GetExtraFeatures())
	}
	// Who does not ask is not told, and an answer of nothing costs nothing.
	r, err = (&agent{machine: sysfs(t, nil)}).GetGuestDetails(t.Context(), &pb.GuestDetailsRequest{})
	if err != nil || r.GetMemBlockSizeBytes() != 0 {
		t.Errorf("%v, %v", r, err)
	}
}
