package agent

import (
	"context"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/uevent"
)

// Only what can be the device is a reason to dial, and a device that it was not is
// none to give up.
func TestHostIsDialledWhenThereIsADevice(t *testing.T) {
	event := func(text string) uevent.Event { return uevent.Parse([]byte(text)) }
	disk := event("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00")
	added := event("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=virtio\x00")
	bound := event("bind@/devices/x\x00ACTION=bind\x00SUBSYSTEM=virtio\x00")
	refused := errors.New("nobody listens")
	for name, tc := range map[string]struct {
		events []uevent.Event
		dials  []error
		want   error
	}{
		"the device comes":             {[]uevent.Event{disk, added, bound}, []error{nil}, nil},
		"another one comes first":      {[]uevent.Event{bound, disk, bound}, []error{unix.ENODEV, nil}, nil},
		"events are lost":              {[]uevent.Event{{Lost: true}}, []error{nil}, nil},
		"nobody listens on the host":   {[]uevent.Event{bound, bound}, []error{refused}, refused},
		"it never comes":               {[]uevent.Event{disk, added}, nil, io.EOF},
		"nothing but others ever come": {[]uevent.Event{bound, bound}, []error{unix.ENODEV, unix.ENODEV}, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			next := func(context.Context) (uevent.Event, error) {
				if len(tc.events) == 0 {
					return uevent.Event{}, io.EOF
				}
				e := tc.events[0]
				tc.events = tc.events[1:]
				return e, nil
			}
			dial := func() error {
				if len(tc.dials) == 0 {
					t.Fatal("it is dialled without need")
				}
				err := tc.dials[0]
				tc.dials = tc.dials[1:]
				return err
			}
			if err := dialPlugged(next, dial); !errors.Is(err, tc.want) || len(tc.dials) > 0 {
				t.Errorf("%v, want %v; %d dials were left", err, tc.want, len(tc.dials))
			}
		})
	}
}
