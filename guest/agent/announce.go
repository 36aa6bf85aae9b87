package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/agentlog"
	"github.com/erofsvm/erofsvm/guest/boot"
	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/guest/server"
	"github.com/erofsvm/erofsvm/guest/uevent"
)

// dialTimeout bounds the one dial that says "I listen".
const dialTimeout = 5 * time.Second

// announce tells the host that the agent listens; the log has it when nobody
// waited there.
//
// Where the machine has no vsock device it is to be a template. Then it is said on
// the console, once the guest has nothing left to do, which settled tells; and by
// vsock in every VM that comes of the template, when its device is plugged in.
func announce(lines *agentlog.Log, settled <-chan guest) {
	// Before the first dial, so that a device that comes meanwhile is not missed.
	events, err := uevent.Listen()
	if err == nil {
		defer events.Close()
		err = dialHost()
		if errors.Is(err, unix.ENODEV) {
			err = (<-settled).serveAsTemplate(events)
		}
	}
	if err != nil {
		slog.New(slog.NewJSONHandler(lines, nil)).Info("nobody waits for the agent", "error", err.Error())
	}
}

// guest is what a guest that is to be a template is prepared with.
type guest struct {
	console io.Writer
	modules *boot.Demand
	calls   server.Config
}

// serveAsTemplate says that the guest can be saved, and dials in what comes of it.
func (g guest) serveAsTemplate(events *uevent.Events) error {
	// Nearly every pod has a network; loaded here, it costs none of them time.
	if err := g.modules.Load(context.Background(), layout.StageNetwork); err != nil {
		return err
	}
	if err := server.Rehearse(context.Background(), g.calls); err != nil {
		return err
	}
	if err := boot.Tidy(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(g.console, layout.TemplateReady); err != nil {
		return err
	}
	return dialPlugged(events.Next, dialHost)
}

// dialPlugged dials when there is a device. It waits without a deadline: a
// template may be used in a year.
func dialPlugged(next func(context.Context) (uevent.Event, error), dial func() error) error {
	for {
		event, err := next(context.Background())
		if err != nil {
			return err
		}
		// "bind" comes when the driver is done with the device (drivers/base/dd.c,
		// driver_bound). Which one it was the dial will say.
		if !event.Lost && (event.Get("SUBSYSTEM") != "virtio" || event.Get("ACTION") != "bind") {
			continue
		}
		if err := dial(); !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
}

// dialHost gives ENODEV where there is no device.
func dialHost() error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	return dialReady(ctx)
}
