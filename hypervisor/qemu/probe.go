package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
)

const (
	kvmDevice = "/dev/kvm"

	// kvmProbeTimeout is for a kernel without a root filesystem to boot and
	// panic, which takes KVM about a second. It is less than what a caller
	// gives a start, so that the answer is kept and not asked for each time.
	kvmProbeTimeout = 5 * time.Second

	// aioProbeTimeout is for QEMU to start and open a file.
	aioProbeTimeout = 3 * time.Second

	// probeFile is what the aio probe opens, in Spec.Dir.
	probeFile = "aio-probe"
)

// accelChoice is an accelerator, never AcceleratorAuto, and why it was taken.
type accelChoice struct {
	Accelerator Accelerator `json:"accelerator"`
	Reason      string      `json:"reason"`
}

// chooseAccelerator answers AcceleratorAuto. That /dev/kvm opens does not mean
// that KVM runs a kernel (nested virtualisation, a filtered CPU model): so a
// kernel is run, once for each boot of the host.
func chooseAccelerator(ctx context.Context, s Spec) (accelChoice, error) {
	if s.Accelerator != AcceleratorAuto {
		return accelChoice{s.Accelerator, "configured"}, nil
	}
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return accelChoice{AcceleratorTCG, err.Error()}, nil
	}
	f.Close()

	key, err := hostKey(s.Binary, s.Kernel)
	if err != nil {
		return accelChoice{}, fmt.Errorf("probe KVM: %w", err)
	}
	const name = "accelerator.json"
	var choice accelChoice
	if cached(s.CacheDir, name, key, &choice) && (choice.Accelerator == AcceleratorKVM || choice.Accelerator == AcceleratorTCG) {
		return choice, nil
	}
	choice = accelChoice{AcceleratorKVM, "a kernel was seen to boot with it"}
	if err := probeKVM(ctx, s); err != nil {
		if ctx.Err() != nil {
			return accelChoice{}, fmt.Errorf("probe KVM: %w", context.Cause(ctx))
		}
		choice = accelChoice{AcceleratorTCG, err.Error()}
	}
	if err := store(s.CacheDir, name, key, choice); err != nil {
		log.G(ctx).WithError(err).Warn("the answer of the KVM probe is not kept")
	}
	return choice, nil
}

// probeKVM boots the kernel with nothing to run, so that it panics and resets
// the machine, at which QEMU exits with 0. A kernel that never got so far can reset the
// machine as well, by a triple fault, so it must have said that it panicked.
func probeKVM(ctx context.Context, s Spec) error {
	ctx, cancel := context.WithTimeout(ctx, kvmProbeTimeout)
	defer cancel()
	p, err := launch(s.Binary, []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-sandbox", sandbox,
		"-machine", s.Machine + ",dump-guest-core=off,usb=off,sata=off,smbus=off,vmport=off",
		"-accel", "kvm", "-cpu", cpu(AcceleratorKVM), "-m", "128M",
		"-kernel", s.Kernel, "-append", strings.Join(consoleParams, " "),
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-device", "isa-serial,chardev=console",
	})
	if err != nil {
		return err
	}
	select {
	case <-p.child.Done():
		p.wait()
	case <-ctx.Done():
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("%s opens, but no kernel boots with it in %v: %w", kvmDevice, kvmProbeTimeout, context.Cause(ctx)), p.kill(undo))
	}
	if err := p.child.Err(); err != nil || !strings.Contains(p.console.Lines(consoleLines), "Kernel panic") {
		return fmt.Errorf("%s opens, but no kernel boots with it: QEMU: %s: %s", kvmDevice, exitReason(err), p.stderr.Lines(1))
	}
	return nil
}

// chooseAIO answers AIOURing: a host can refuse it (kernel.io_uring_disabled, a
// seccomp filter around the shim), QEMU can be built without it, and blockdev-add
// can hang on it.
func chooseAIO(ctx context.Context, s Spec) (AIO, error) {
	if s.AIO != AIOURing {
		return s.AIO, nil
	}
	key, err := hostKey(s.Binary)
	if err != nil {
		return "", fmt.Errorf("probe io_uring: %w", err)
	}
	const name = "aio.json"
	var works bool
	if !cached(s.CacheDir, name, key, &works) {
		err := probeURing(ctx, s)
		if ctx.Err() != nil {
			return "", fmt.Errorf("probe io_uring: %w", context.Cause(ctx))
		}
		if works = err == nil; !works {
			log.G(ctx).WithError(err).Warn("io_uring does not work on this host, taking threads for disks")
		}
		if err := store(s.CacheDir, name, key, works); err != nil {
			log.G(ctx).WithError(err).Warn("the answer of the io_uring probe is not kept")
		}
	}
	if works {
		return AIOURing, nil
	}
	return AIOThreads, nil
}

// probeURing lets a QEMU without a machine open a file.
func probeURing(ctx context.Context, s Spec) (err error) {
	ctx, cancel := context.WithTimeout(ctx, aioProbeTimeout)
	defer cancel()
	if err := os.WriteFile(filepath.Join(s.Dir, probeFile), make([]byte, 4096), 0o600); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeFile(s.Dir, probeFile)) }()
	p, err := launch(s.Binary, []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-sandbox", sandbox, "-machine", "none", "-S",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
	})
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, p.kill(undo))
	}()
	if err := p.handshake(ctx); err != nil {
		return fmt.Errorf("%w%s", err, p.tails())
	}
	return p.monitor.Execute(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": "probe", "read-only": true,
		"filename": filepath.Join(s.Dir, probeFile), "aio": AIOURing,
	}, nil)
}
