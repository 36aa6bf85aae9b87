package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/runtime/stdio"
)

// watchedVM tells what disks it has at the moments of its start.
type watchedVM struct {
	*fakeVM
	run, ready func(ctx context.Context, disks []string) error // nil for nothing
	plugged    chan struct{}                                   // a send for each disk
}

func (v watchedVM) Attach(ctx context.Context, d hypervisor.Disk) (hypervisor.Attachment, error) {
	defer func() { v.plugged <- struct{}{} }()
	return v.fakeVM.Attach(ctx, d)
}

func (v watchedVM) Run(ctx context.Context) error {
	if v.run == nil {
		return nil
	}
	return v.run(ctx, v.attached())
}

func (v watchedVM) WaitReady(ctx context.Context) error {
	if v.ready == nil {
		return nil
	}
	return v.ready(ctx, v.attached())
}

// planned waits until the container that is being created has its disks planned.
func planned(ctx context.Context, w *world) error {
	w.Sandbox.mu.Lock()
	m := w.Sandbox.machine
	w.Sandbox.mu.Unlock()
	select {
	case <-m.early.offered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// initrd makes the guest's initramfs one that begins with a member of that name.
func (w *world) initrd(t *testing.T, member string) {
	t.Helper()
	w.config.Guest.Initrd = filepath.Join(w.dir, "initrd.img")
	header := "070701" + strings.Repeat("00000000", 13)
	if err := os.WriteFile(w.config.Guest.Initrd, fmt.Append(nil, header, member, "\x00\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDisksAreThereBeforeAGuestOfATemplateRuns(t *testing.T) {
	w, _, _ := withTemplate(t)
	var there []string
	vm := watchedVM{fakeVM: w.vm, plugged: make(chan struct{}, 8), run: func(_ context.Context, disks []string) error {
		there = disks
		return nil
	}}
	w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
		return vm, errors.Join(spec.OnStarted(qemu.Record{}), planned(ctx, w))
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
	if len(there) == 0 || !slices.Equal(w.vm.attached(), there) {
		t.Errorf("disks %q when the guest runs, and %q in the end", there, w.vm.attached())
	}
}

// What a VM had that did not go on from its template, the one has that boots in its
// place.
func TestDisksFollowToTheVMThatBootsInstead(t *testing.T) {
	w, _, said := withTemplate(t)
	boot, killed := w.start, 0
	first := &fakeVM{agent: w.agent, done: make(chan struct{})}
	w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
		if spec.From.State == nil {
			return boot(ctx, spec)
		}
		return spoiltVM{first, errors.New("no such luck"), nil, &killed}, planned(ctx, w)
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
	if len(first.attached()) == 0 || !slices.Equal(first.attached(), w.vm.attached()) || killed != 1 {
		t.Errorf("disks %q, then %q; killed %d times\n%s", first.attached(), w.vm.attached(), killed, said)
	}
	if got := w.agent.container("c").Storages; len(got) == 0 || got[0].Source == "" {
		t.Errorf("storages %v", got)
	}
}

func TestDisksArePluggedInWhileAGuestOfOursBoots(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.initrd(t, earlyMark)
	vm := watchedVM{fakeVM: w.vm, plugged: make(chan struct{}, 8)}
	vm.ready = func(ctx context.Context, _ []string) error {
		select {
		case <-vm.plugged:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.start = func(_ context.Context, spec qemu.Spec) (bootedVM, error) { return vm, spec.OnStarted(qemu.Record{}) }
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
}

// Kata's agent knows only disks whose uevents it has heard.
func TestDisksWaitForTheAgentOfAnother(t *testing.T) {
	w := newWorld(t, newFakeAgent())
	w.initrd(t, "init")
	vm := watchedVM{fakeVM: w.vm, plugged: make(chan struct{}, 8)}
	vm.ready = func(ctx context.Context, _ []string) error {
		if err := planned(ctx, w); err != nil {
			return err
		}
		if disks := w.vm.attached(); len(disks) > 0 {
			return fmt.Errorf("disks %q before the agent", disks)
		}
		return nil
	}
	w.start = func(_ context.Context, spec qemu.Spec) (bootedVM, error) { return vm, spec.OnStarted(qemu.Record{}) }
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
	if len(w.vm.attached()) == 0 {
		t.Error("no disks in the end")
	}
}

// The files of a plan are closed once its container has collected: not while a VM is
// being given them.
func TestOffersAreWithdrawnOnlyOnceAPlugIsOver(t *testing.T) {
	e := newEarlyDisks()
	c := newContainer("c", "", stdio.Paths{}, func() {})
	plugging, goOn := make(chan struct{}), make(chan struct{})
	e.offer(c, func(context.Context) ([]*pb.Storage, error) {
		close(plugging)
		<-goOn
		return []*pb.Storage{{Source: "02/00"}}, nil
	})
	over := make(chan struct{})
	go func() {
		defer close(over)
		e.plug(t.Context())
	}()
	<-plugging
	collected := make(chan bool)
	go func() {
		_, done, _ := e.collect(c)
		collected <- done
	}()
	select {
	case <-collected:
		t.Fatal("collected while disks are plugged in")
	case goOn <- struct{}{}:
	}
	if !<-collected {
		t.Error("what was plugged in is not collected")
	}
	<-over
}

// A container that joins while the VM starts takes nobody else's disks.
func TestOffersAreTheirContainersOwn(t *testing.T) {
	e := newEarlyDisks()
	first, second := newContainer("1", "", stdio.Paths{}, func() {}), newContainer("2", "", stdio.Paths{}, func() {})
	attach := func(source string) func(context.Context) ([]*pb.Storage, error) {
		return func(context.Context) ([]*pb.Storage, error) { return []*pb.Storage{{Source: source}}, nil }
	}
	e.offer(first, attach("of the first"))
	e.offer(second, attach("of the second"))
	e.plug(t.Context())
	if _, done, _ := e.collect(second); done {
		t.Error("the second collects")
	}
	if got, done, err := e.collect(first); !done || err != nil || got[0].Source != "of the first" {
		t.Errorf("%v, %v, %v", got, done, err)
	}
}

func TestOfferThatIsWithdrawnIsNotPluggedIn(t *testing.T) {
	e := newEarlyDisks()
	c := newContainer("c", "", stdio.Paths{}, func() {})
	e.offer(c, func(context.Context) ([]*pb.Storage, error) {
		t.Error("plugged in")
		return nil, nil
	})
	if _, done, _ := e.collect(c); done {
		t.Error("something is collected")
	}
	e.plug(t.Context())
}

func TestGuestsThatFindEarlyDisks(t *testing.T) {
	header := "070701" + strings.Repeat("00000000", 13)
	for name, c := range map[string]struct {
		head string
		want bool
	}{
		"ours":                         {header + earlyMark + "\x00rest", true},
		"another's":                    {header + "init\x00" + strings.Repeat("x", 64), false},
		"a name that is ours and more": {header + earlyMark + "s\x00rest", false},
		"compressed":                   {"\x1f\x8b" + strings.Repeat("x", 200), false},
		"cut off":                      {header + earlyMark, false},
		"empty":                        {"", false},
	} {
		path := filepath.Join(t.TempDir(), "initrd.img")
		if err := os.WriteFile(path, []byte(c.head), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := findsEarlyDisks(path); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if findsEarlyDisks(filepath.Join(t.TempDir(), "missing")) {
		t.Error("a file that is not there")
	}
}
