package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/hypervisor/template"
)

// maxTemplates is how many templates a host keeps: one for each size and each guest
// image in use, and a few that were.
const maxTemplates = 16

// ownProgram builds templates, when it is started for that (runtime/shim).
const ownProgram = "/proc/self/exe"

// TemplateStore is where VMs of this configuration have their templates.
func TemplateStore(c configs.Config) template.Store {
	return template.Store{
		Dir:    filepath.Join(c.CacheDir, "templates"),
		Limits: template.Limits{Count: maxTemplates, Bytes: int64(c.Hypervisor.TemplatesMiB) << 20},
	}
}

// TemplateSpec is the VM of a pod with this configuration, with all that is no
// pod's own.
func TemplateSpec(c configs.Config) (qemu.Spec, error) {
	c.Hypervisor.Templates = configs.TemplatesOn
	spec, err := specOf(c)
	spec.NICSlots = nicSlots(c.Network)
	return spec, err
}

// BuildsTemplate says whether the program was started to build a template, which
// BuildTemplate does then.
func BuildsTemplate(args []string) bool { return template.IsWork(args) }

// BuildTemplate does a template.Job, and returns the exit status of the process.
func BuildTemplate(in io.Reader, errs io.Writer) int { return template.Work(in, errs) }

// lender is how a VM gets its template: by a Store, but in tests.
type lender func(s template.Store, ctx context.Context, spec qemu.Spec) (*template.Loan, qemu.Spec, error)

// goOn tries to get a VM from a template, up to the point where the guest is made one
// of its own. It says whether it did: if not, the VM is to be booted, and nothing of
// the attempt is left. An error means that the pod is given up.
func (m *machine) goOn(ctx context.Context, spec qemu.Spec) (bool, error) {
	if m.cfg.Hypervisor.Templates != configs.TemplatesOn {
		return false, nil
	}
	begun := time.Now()
	store := TemplateStore(m.cfg)
	described, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.QEMU.Std())
	loan, resumed, err := m.lend(store, described, spec)
	cancel()
	m.trace.phase("template", begun)
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case errors.Is(err, template.ErrNone):
		m.log.Infof("%v: it is built once this virtual machine runs", err)
		resumed.Dir, resumed.NetNS, resumed.OnStarted = "", nil, nil
		m.wanted = &template.Job{Store: store, Spec: resumed}
		return false, nil
	case err != nil:
		m.log.WithError(err).Warn("hypervisor.templates: the virtual machine boots without a template")
		return false, nil
	}
	defer loan.Close()

	if err := m.resume(ctx, resumed); err != nil {
		return false, m.resumeFailed(ctx, loan, err)
	}
	m.log.Infof("virtual machine goes on from template %s", loan.Key)
	m.trace.set(func(t *traceFile) { t.Template = string(loan.Key) })
	if err := loan.Worked(); err != nil {
		m.log.WithError(err).Warn("failures of a template stay counted")
	}
	return true, nil
}

// resume has a VM go on from its template and answer.
func (m *machine) resume(ctx context.Context, spec qemu.Spec) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadlines.Template.Std())
	defer cancel()
	if err := m.startVM(ctx, spec); err != nil {
		return err
	}
	// The guest stands still, so that it finds all devices at once.
	m.net.plug(ctx, m)
	m.early.plug(ctx)
	if err := m.vm.Run(ctx); err != nil {
		return err
	}
	return m.reach(ctx, "resume the guest (deadlines.template)")
}

// resumeFailed takes apart what there is of a VM that did not go on.
func (m *machine) resumeFailed(ctx context.Context, loan *template.Loan, why error) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.Deadlines.Stop.Std())
	defer cancel()
	if m.agent != nil {
		m.agent.Close()
		m.agent = nil
	}
	if m.vm != nil {
		if err := m.vm.Kill(undo); err != nil {
			return fmt.Errorf("%w: and it does not end: %w", why, err)
		}
		m.vm = nil
	}
	m.net.unplugged()
	m.early.lost()
	m.layers.clear()
	m.trace.set(func(t *traceFile) { t.Disks = nil })
	if ctx.Err() != nil {
		return context.Cause(ctx) // which says nothing about the template
	}
	failures, err := loan.Failed()
	m.log.WithError(errors.Join(why, err)).Warnf("template %s: a virtual machine did not go on from it, and boots instead; that is failure %d of it", loan.Key, failures)
	return nil
}

// order has the template built that this VM could have gone on from. It is called
// once the VM runs. What the process takes that builds is not the pod's to pay, whose
// cgroup may have no room for a second guest.
func (m *machine) order() {
	if m.wanted == nil {
		return
	}
	var leave func(pid int) error
	if m.group != nil {
		leave = m.group.SendHome
	}
	if err := m.wanted.Launch(m.ctx, ownProgram, leave); err != nil && m.ctx.Err() == nil {
		m.log.WithError(err).Warn("a template cannot be built")
	}
}
