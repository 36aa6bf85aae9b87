// Package image builds the guest image: the kernel, and an initramfs with the
// agent and just the modules that a pod needs.
//
// It owns the three files that it writes (Kernel, Initrd, Manifest) and the
// order of the modules in the initramfs; where things lie inside is agreed with
// the agent in package layout. Its inputs are a distribution's kernel package,
// unpacked, and the agent's binary. Same inputs, same bytes: no clock, no path
// of the machine and no map order reaches the output.
//
// Any goroutine may call it; two builds into one directory at once leave the
// files of either, never a mixture within a file. It never runs a program,
// never touches the network, and never writes outside Options.Output.
package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// The files that Build leaves in Options.Output.
const (
	Kernel   = "vmlinux"
	Initrd   = "initrd.img"
	Manifest = "manifest.json"
)

// Bounds on what is read and on what it unpacks to, in bytes. The real figures
// of a distribution's kernel are a tenth of these.
const (
	maxKernel = 512 << 20
	maxModule = 64 << 20
	maxTable  = 32 << 20
	maxAgent  = 256 << 20
)

var (
	// ErrNoKernel says that Options.KernelDir holds no kernel that can be entered, or
	// several.
	ErrNoKernel = errors.New("no kernel")
	// ErrNoModule says that a module is neither in the kernel nor beside it.
	ErrNoModule = errors.New("no module")
	// ErrAgent says that the agent cannot run as the first process.
	ErrAgent = errors.New("agent is no static x86-64 executable")
)

// Options are the inputs of Build and where its output goes.
type Options struct {
	// KernelDir is an unpacked kernel package: boot/vmlinuz-VERSION, or an
	// uncompressed boot/vmlinux-VERSION, which is taken if there are both, and
	// lib/modules/VERSION with its modules.dep (depmod(8) makes that).
	KernelDir string
	// Version selects one of several kernels in KernelDir; empty takes the
	// only one.
	Version string
	// Agent is the static binary that becomes layout.Init.
	Agent string
	// Output is the directory for the files; it is made if it is missing.
	Output string
	// Modules is what the guest needs, without dependencies; nil means
	// DefaultModules.
	Modules []Want
}

// Build writes the guest image and returns what its manifest says. Each file is
// renamed into place when it is whole, the manifest last, so a manifest
// describes files that were there before it.
func Build(options Options) (Report, error) {
	version, err := kernelVersion(options.KernelDir, options.Version)
	if err != nil {
		return Report{}, err
	}
	report := Report{KernelVersion: version, Modules: []ModuleDigest{}}

	kernel, err := readKernel(options.KernelDir, &report)
	if err != nil {
		return Report{}, err
	}

	agent, err := readAgent(options.Agent)
	if err != nil {
		return Report{}, err
	}
	report.addInput("agent", agent)

	wants := options.Modules
	if wants == nil {
		wants = DefaultModules()
	}
	modules, err := loadModules(filepath.Join(options.KernelDir, "lib", "modules", version), wants)
	if err != nil {
		return Report{}, err
	}
	report.addModules(modules)

	var initrd bytes.Buffer
	if err := writeInitrd(&initrd, agent, modules); err != nil {
		return Report{}, fmt.Errorf("make %s: %w", Initrd, err)
	}

	if err := os.MkdirAll(options.Output, 0o755); err != nil {
		return Report{}, err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{Kernel, kernel}, {Initrd, initrd.Bytes()}} {
		report.addOutput(file.name, file.data)
		if err := writeAtomically(filepath.Join(options.Output, file.name), file.data); err != nil {
			return Report{}, err
		}
	}
	manifest, err := report.encode()
	if err != nil {
		return Report{}, err
	}
	return report, writeAtomically(filepath.Join(options.Output, Manifest), manifest)
}

// readKernel reads the kernel of report.KernelVersion, and notes in the report what it
// is.
func readKernel(dir string, report *Report) ([]byte, error) {
	report.KernelFormat = FormatELF
	name := "vmlinux-" + report.KernelVersion
	vmlinux, err := readBounded(filepath.Join(dir, "boot", name), maxKernel)
	switch {
	case err == nil:
		report.addInput(name, vmlinux)
		if err := enterable(vmlinux); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNoKernel, name, err)
		}
		if vmlinux, err = lean(vmlinux); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNoKernel, name, err)
		}
		return vmlinux, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	name = "vmlinuz-" + report.KernelVersion
	bzImage, err := readBounded(filepath.Join(dir, "boot", name), maxKernel)
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	report.addInput(name, bzImage)
	vmlinux, err = extractKernel(bzImage)
	if err == nil {
		vmlinux, err = lean(vmlinux)
	}
	if err != nil {
		report.KernelFormat, report.KernelNote = FormatBzImage, err.Error()
		return bzImage, nil
	}
	return vmlinux, nil
}

// releasePattern is what `uname -r` can be; it becomes part of file names.
var releasePattern = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~_-]{0,63}$`)

// kernelVersion checks the asked version, or finds the only one of dir.
func kernelVersion(dir, asked string) (string, error) {
	if asked == "" {
		entries, err := os.ReadDir(filepath.Join(dir, "lib", "modules"))
		if err != nil {
			return "", fmt.Errorf("%w in %s: %w; unpack a linux-image package there", ErrNoKernel, dir, err)
		}
		if len(entries) != 1 {
			return "", fmt.Errorf("%w chosen: %s/lib/modules has %d versions; name one", ErrNoKernel, dir, len(entries))
		}
		asked = entries[0].Name()
	}
	if !releasePattern.MatchString(asked) {
		return "", fmt.Errorf("%w: %q is no kernel release", ErrNoKernel, asked)
	}
	return asked, nil
}

// readAgent reads the agent and makes sure that the kernel can start it in an
// initramfs without libraries: with an interpreter named in it, the guest would
// panic with ENOENT for a file that is there.
func readAgent(path string) ([]byte, error) {
	data, err := readBounded(path, maxAgent)
	if err != nil {
		return nil, fmt.Errorf("read agent: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrAgent, path, err)
	}
	if file.Machine != elf.EM_X86_64 {
		return nil, fmt.Errorf("%w: %s is for %s", ErrAgent, path, file.Machine)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%w: %s needs a dynamic loader; build it with CGO_ENABLED=0", ErrAgent, path)
		}
	}
	return data, nil
}
