package qmp_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/erofsvm/erofsvm/hypervisor/internal/testguest"
	"github.com/erofsvm/erofsvm/hypervisor/qmp"
)

// realQEMU starts a QEMU without a machine.
func realQEMU(t *testing.T) *qmp.Monitor {
	t.Helper()
	binary := testguest.Find(t).QEMU
	l, err := net.Listen("unix", t.TempDir()+"/qmp")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(within(t), binary, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "none", "-S", "-qmp", "unix:"+l.Addr().String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	m := qmp.New(conn)
	t.Cleanup(func() { m.Disconnect() })
	if err := m.Handshake(within(t)); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRealQEMU(t *testing.T) {
	m := realQEMU(t)
	if m.Version().QEMU.Major < 7 {
		t.Errorf("version is %v", m.Version())
	}
	var schema []map[string]any
	if err := m.Execute(within(t), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("schema has %d entries, %v", len(schema), err)
	}
	if err := m.Execute(within(t), "no-such-command", nil, nil); !qmp.IsClass(err, qmp.ClassCommandNotFound) {
		t.Errorf("error is %v", err)
	}
	if err := m.Execute(within(t), "device_del", map[string]string{"id": "none"}, nil); !qmp.IsClass(err, qmp.ClassDeviceNotFound) {
		t.Errorf("error is %v", err)
	}
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() {
			var status struct{ Status string }
			if err := m.Execute(within(t), "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
				t.Errorf("status is %q, %v", status.Status, err)
			}
		})
	}
	calls.Wait()

	out, err := m.Run([]byte(`{"execute": "query-name"}`))
	if err != nil || !strings.Contains(string(out), `"return"`) {
		t.Errorf("%s, %v", out, err)
	}

	events := m.Subscribe("SHUTDOWN")
	if err := m.Execute(within(t), "quit", nil, nil); err != nil && !errors.Is(err, qmp.ErrClosed) {
		t.Error(err)
	}
	if e := <-events.Events(); e.Data["reason"] != "host-qmp-quit" {
		t.Errorf("event is %+v", e)
	}
	<-m.Done()
}
