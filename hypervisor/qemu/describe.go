package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/hypervisor/vsock"
)

// scheme is how VMs are saved; a change to it makes other templates.
const scheme = "ignore-shared 2"

// programTimeout is for a QEMU without a machine to answer.
const programTimeout = 10 * time.Second

// Description is all that a saved VM depends on. Of two Specs with the same
// description one can go on from what was saved of the other. QEMU itself refuses
// only some of what does not fit: with another kernel, or another model of the
// processor, it loads without a word, and the guest hangs.
type Description struct {
	Scheme string `json:"scheme"`
	// Kernel is the release of the host's kernel, a part of the machine with KVM.
	Kernel string `json:"kernel"`
	// CPU is what /proc/cpuinfo says of the host's first processor, its speed left out.
	CPU map[string]string `json:"cpu"`
	// QEMU is its version.
	QEMU string `json:"qemu"`
	// Files are QEMU, its firmware, and what the guest boots: the agent is a part of that.
	Files []FileIdentity `json:"files"`
	// Arguments are QEMU's, with the versioned name of the machine's type: the
	// accelerator, the processor, memory and devices in their order.
	Arguments []string `json:"arguments"`
	// Vsock is the kind of device that is plugged in afterwards.
	Vsock vsock.Kind `json:"vsock"`
}

// FileIdentity tells a file from another one, and from itself after a change.
type FileIdentity struct {
	Path    string `json:"path"`
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	Changed string `json:"changed"` // content or name, seconds since 1970
	Written string `json:"written"` // content
}

// firmware are the files that QEMU may take for our machines from its data
// directories (hw/i386/pc_sysfw.c, hw/i386/x86-common.c).
var firmware = []string{"bios-256k.bin", "bios.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin"}

// Describe says what a saved VM of spec would depend on, and returns spec with all
// that was left for the host to choose. It runs QEMU once for each boot of the host
// (see Spec.CacheDir). An error that wraps ErrNotSavable says that QEMU is too old.
func Describe(ctx context.Context, spec Spec) (Description, Spec, error) {
	d, s, err := describe(ctx, spec)
	if err != nil {
		return Description{}, Spec{}, fmt.Errorf("describe virtual machine: %w", err)
	}
	return d, s, nil
}

func describe(ctx context.Context, spec Spec) (d Description, s Spec, err error) {
	s = spec.withDefaults()
	if err := s.validate(); err != nil {
		return d, s, err
	}
	program, err := learnProgram(ctx, s)
	if err != nil {
		return d, s, err
	}
	if program.Release.before(oldestSaving) {
		return d, s, fmt.Errorf("%w: QEMU %s is older than %s (%s)", ErrNotSavable, program.Release, oldestSaving, s.Binary)
	}
	if s.decided, err = chooseAccelerator(ctx, s); err != nil {
		return d, s, err
	}
	s = s.settled(s.decided.Accelerator)
	s.Vsock = s.Vsock.Resolve()
	if s.Machine, err = program.machine(s.Machine); err != nil {
		return d, s, err
	}

	wiring := wiringOf(s.Vsock)
	d = Description{Scheme: scheme, QEMU: program.Version, Vsock: s.Vsock}
	saved := s
	saved.saving, saved.generation = true, noGeneration
	d.Arguments = argv(saved, s.decided.Accelerator, wiring)
	paths := []string{s.Binary, s.Kernel, s.Initrd}
	for _, dir := range program.DataDirs {
		for _, name := range firmware {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	for i, path := range paths {
		f, err := identify(path)
		if errors.Is(err, os.ErrNotExist) && i > 2 {
			continue // that directory does not have it
		}
		if err != nil {
			return d, s, err
		}
		d.Files = append(d.Files, f)
	}
	if d.CPU, err = hostCPU("/proc/cpuinfo"); err != nil {
		return d, s, err
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return d, s, os.NewSyscallError("uname", err)
	}
	d.Kernel = unix.ByteSliceToString(host.Release[:])
	return d, s, nil
}

func identify(path string) (FileIdentity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileIdentity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return FileIdentity{
		Path: path, Device: st.Dev, Inode: st.Ino, Size: st.Size,
		Changed: fmt.Sprintf("%d.%09d", st.Ctim.Sec, st.Ctim.Nsec), Written: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec),
	}, nil
}

// cpuFacts are the lines of /proc/cpuinfo that say what a processor is and can.
var cpuFacts = []string{"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "bugs"}

// hostCPU reads about the first processor; the others of a host are like it.
func hostCPU(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := make([]byte, 16<<10) // several times what one takes
	n, err := f.Read(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	text, _, _ = bytes.Cut(text[:n], []byte("\n\n"))
	facts := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		for _, wanted := range cpuFacts {
			if strings.TrimSpace(name) == wanted {
				facts[wanted] = strings.TrimSpace(value)
			}
		}
	}
	return facts, nil
}

// release is a version of QEMU, without its last number.
type release struct{ Major, Minor int }

func (r release) before(other release) bool {
	return r.Major < other.Major || r.Major == other.Major && r.Minor < other.Minor
}

func (r release) String() string { return fmt.Sprintf("%d.%d", r.Major, r.Minor) }

// program is what a QEMU says of itself. It is kept as JSON.
type program struct {
	Version  string            `json:"version"`
	Release  release           `json:"release"`
	Machines map[string]string `json:"machines"` // q35 and its versions: name of the type
	DataDirs []string          `json:"data_dirs"`
}

func (p program) machine(name string) (string, error) {
	if found, ok := p.Machines[name]; ok {
		return found, nil
	}
	return "", fmt.Errorf("%w: hypervisor.machine: this QEMU %s has no %s", ErrSpec, p.Version, name)
}

func learnProgram(ctx context.Context, s Spec) (p program, err error) {
	key, err := hostKey(s.Binary)
	if err != nil {
		return p, err
	}
	const name = "program.json"
	if cached(s.CacheDir, name, key, &p) && p.Version != "" {
		return p, nil
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	if p, err = askProgram(ctx, s.Binary); err != nil {
		return p, fmt.Errorf("ask %s what it is: %w", s.Binary, err)
	}
	return p, store(s.CacheDir, name, key, p)
}

func askProgram(ctx context.Context, binary string) (p program, err error) {
	proc, err := launch(binary, []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-sandbox", sandbox, "-machine", "none", "-S",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
	})
	if err != nil {
		return p, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, proc.kill(undo))
	}()
	if err := proc.handshake(ctx); err != nil {
		return p, fmt.Errorf("%w%s", err, proc.tails())
	}
	var machines []struct {
		Name  string `json:"name"`
		Alias string `json:"alias"`
	}
	if err := proc.monitor.Execute(ctx, "query-machines", nil, &machines); err != nil {
		return p, err
	}
	v := proc.monitor.Version()
	p = program{
		Version:  strings.TrimSpace(v.String() + " " + v.Package),
		Release:  release{v.QEMU.Major, v.QEMU.Minor},
		Machines: map[string]string{},
	}
	for _, m := range machines {
		for _, name := range []string{m.Name, m.Alias} {
			if machineName().MatchString(name) {
				p.Machines[name] = m.Name
			}
		}
	}
	p.DataDirs, err = dataDirs(ctx, binary)
	return p, err
}

// dataDirs are where QEMU looks for its firmware, in this order.
func dataDirs(ctx context.Context, binary string) ([]string, error) {
	cmd := exec.CommandContext(ctx, binary, "-L", "help")
	cmd.Env, cmd.Dir = []string{}, "/"
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("-L help: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(out)) {
		if dir := strings.TrimSpace(line); filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}
