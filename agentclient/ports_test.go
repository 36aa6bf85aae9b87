package agentclient

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

func TestARefusedPortHasTheClassOfTheRefusal(t *testing.T) {
	host, guest := net.Pipe()
	defer host.Close()
	asked := make(chan uint16, 1)
	go func() {
		defer guest.Close()
		port, _ := streamwire.ReadPort(guest)
		asked <- port
		_ = streamwire.WriteAnswer(guest, errdefs.ErrUnavailable)
	}()
	if err := ConnectPort(t.Context(), host, 8080); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	if port := <-asked; port != 8080 {
		t.Errorf("port %d was asked for", port)
	}
}

func TestARequestForAPortEndsWithItsContext(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	defer host.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := ConnectPort(ctx, host, 80); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("%v", err)
	}
}
