package sandbox

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/hypervisor/template"
)

// withTemplate is a world whose store has the template of every VM.
func withTemplate(t *testing.T) (w *world, key template.Key, said *bytes.Buffer) {
	t.Helper()
	w = newWorld(t, newFakeAgent())
	w.config.Hypervisor.Templates = configs.TemplatesOn
	d := qemu.Description{Scheme: "a test"}
	store := TemplateStore(w.config)
	err := store.Build(t.Context(), d, func(_ context.Context, _ string, to qemu.Saved) error {
		_, err := to.State.WriteString("a saved VM")
		return errors.Join(err, to.Memory.Truncate(1<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	if key, err = template.KeyOf(d); err != nil {
		t.Fatal(err)
	}
	w.lend = func(s template.Store, _ context.Context, spec qemu.Spec) (*template.Loan, qemu.Spec, error) {
		loan, err := s.Borrow(key)
		if err == nil {
			spec.From = loan.Saved
		}
		return loan, spec, err
	}
	said = &bytes.Buffer{}
	logger := logrus.New()
	logger.SetOutput(said)
	w.Sandbox.log = log.L.WithField("test", t.Name())
	w.Sandbox.log.Logger = logger
	return w, key, said
}

// spoiltVM goes on from a template, and its guest never answers.
type spoiltVM struct {
	*fakeVM
	run, ready error
	killed     *int
}

func (v spoiltVM) Run(context.Context) error       { return v.run }
func (v spoiltVM) WaitReady(context.Context) error { return v.ready }
func (v spoiltVM) Kill(context.Context) error      { *v.killed++; return nil }

func TestVMGoesOnFromItsTemplate(t *testing.T) {
	w, key, said := withTemplate(t)
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
	if w.starts != 1 || !strings.Contains(said.String(), "goes on from template "+string(key)) {
		t.Errorf("%d starts\n%s", w.starts, said)
	}
}

// A VM that does not go on, at whatever point, is gone, and the pod has one that
// boots; the failure counts.
func TestVMThatDoesNotGoOnBoots(t *testing.T) {
	broken := errors.New("no such luck")
	for name, spoilt := range map[string]struct{ start, run, ready error }{
		"QEMU does not take it":       {start: broken},
		"the guest cannot run":        {run: broken},
		"the guest does not answer":   {ready: broken},
		"the guest is there too late": {ready: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			w, key, said := withTemplate(t)
			killed, boot := 0, w.start
			var from []bool
			w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
				from = append(from, spec.From.State != nil)
				if spec.From.State == nil {
					return boot(ctx, spec)
				}
				if spoilt.start != nil {
					return nil, spoilt.start
				}
				return spoiltVM{w.vm, spoilt.run, spoilt.ready, &killed}, nil
			}
			if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
				t.Fatal(err)
			}
			if want := 1; spoilt.start == nil && killed != want {
				t.Errorf("killed %d times", killed)
			}
			if !slices.Equal(from, []bool{true, false}) {
				t.Errorf("starts from a template: %v", from)
			}
			list, err := TemplateStore(w.config).List()
			if err != nil || len(list) != 1 || list[0].Key != key || list[0].Failures != 1 {
				t.Errorf("%+v, %v", list, err)
			}
			if !strings.Contains(said.String(), "boots instead") {
				t.Errorf("%s", said)
			}
		})
	}
}

// A pod that is killed meanwhile says nothing about its template.
func TestKilledPodIsNoFailureOfItsTemplate(t *testing.T) {
	w, _, _ := withTemplate(t)
	killed := 0
	w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
		w.Sandbox.mu.Lock()
		m := w.Sandbox.machine
		w.Sandbox.mu.Unlock()
		m.cancel(context.Canceled)
		return spoiltVM{w.vm, ctx.Err(), nil, &killed}, nil
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err == nil {
		t.Fatal("a pod that was given up is there")
	}
	if list, err := TemplateStore(w.config).List(); err != nil || len(list) != 1 || list[0].Failures != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// Whatever is wrong with templates, a pod boots.
func TestPodBootsWithoutTemplates(t *testing.T) {
	for says, why := range map[string]error{
		"boots without a template": template.ErrUnsafe,
		"QEMU is too old":          errors.Join(qemu.ErrNotSavable, errors.New("QEMU is too old")),
	} {
		w, _, said := withTemplate(t)
		w.lend = func(template.Store, context.Context, qemu.Spec) (*template.Loan, qemu.Spec, error) {
			return nil, qemu.Spec{}, why
		}
		if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), says) {
			t.Errorf("%s", said)
		}
	}
}

// By default nobody asks for one.
func TestTemplatesAreOffByDefault(t *testing.T) {
	w, _, _ := withTemplate(t)
	w.config = configs.Default()
	w.config.StateDir, w.config.Hypervisor.Path, w.config.Vsock.DevicePath = w.dir+"/state", "true", "true"
	w.config.Network.Host = configs.HostNetworkLoopback
	w.lend = func(template.Store, context.Context, qemu.Spec) (*template.Loan, qemu.Spec, error) {
		t.Error("a template is asked for")
		return nil, qemu.Spec{}, template.ErrNone
	}
	if _, err := w.Create(t.Context(), w.request(t, "c", "")); err != nil {
		t.Fatal(err)
	}
}
