// Package hostcheck says whether a host can run VMs, and whether the runtime is
// installed on it.
//
// It owns what the host must have, in which version, and the labels that a node
// gets for it. It looks and asks programs for their version, changes nothing, and
// starts no VM: whether KVM really boots a kernel is found out by the first VM. Its
// functions keep nothing and may be called from any goroutine.
package hostcheck

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// askTimeout is how long a program may take to say its version.
const askTimeout = 10 * time.Second

// Kind is what a finding means for the answer.
type Kind string

const (
	// Need is what a host must have before the runtime can be installed.
	Need Kind = "need"
	// Part is a part of the runtime that must be installed.
	Part Kind = "part"
	// Note makes VMs faster, and they run without.
	Note Kind = "note"
)

// Finding is one thing that was looked at.
type Finding struct {
	Name   string `json:"name"`
	Kind   Kind   `json:"kind"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // what was found, or what is missing and how to get it
}

// Report is the answer. The labels are for a node of Kubernetes.
type Report struct {
	Fit      bool              `json:"fit"`   // every need is met
	Ready    bool              `json:"ready"` // and every part is there
	Findings []Finding         `json:"findings"`
	Labels   map[string]string `json:"labels"`
}

// Missing are the findings of a kind that are not as they should be, a line each.
func (r Report) Missing(kind Kind) []string {
	var all []string
	for _, f := range r.Findings {
		if f.Kind == kind && !f.OK {
			all = append(all, f.Name+": "+f.Detail)
		}
	}
	return all
}

// Names of labels.
const (
	LabelReady = "erofsvm.io/ready"
	LabelKVM   = "erofsvm.io/kvm"
)

// Host is what is looked at.
type Host struct {
	Root hostroot.Root
	// Config is the runtime's: which QEMU, which kernel.
	Config configs.Config
	// Shim is the shim's program, by name or absolute path.
	Shim string
	// Containerd is containerd's program, by name or absolute path.
	Containerd string
	// Socket is containerd's, "" if its plugins are not to be asked for.
	Socket string
}

// Check looks at a host.
func Check(ctx context.Context, h Host) Report {
	findings := []Finding{
		h.architecture(),
		h.kvm(),
		h.vsock(),
		h.tun(),
		h.erofs(),
		h.program(ctx, "qemu", h.Config.Hypervisor.Path, version{7, 2}, "install qemu-system-x86"),
		h.program(ctx, "mkfs.erofs", h.Config.Rootfs.MkfsErofs, version{1, 9, 3}, "install erofs-utils 1.9.3 or newer; before, it merges layers wrongly"),
		h.program(ctx, "mkfs.ext4", h.Config.Rootfs.MkfsExt4, version{1, 43}, "install e2fsprogs", "-V"),
		h.virtiofsd(ctx),
		h.containerd(ctx),
		h.plugins(ctx),
		h.file("shim", h.Shim, true),
		h.file("kernel", h.Config.Guest.Kernel, false),
		h.file("initrd", h.Config.Guest.Initrd, false),
	}
	r := Report{Fit: true, Ready: true}
	for _, f := range findings {
		if f.Name == "" {
			continue
		}
		r.Findings = append(r.Findings, f)
		r.Fit = r.Fit && (f.OK || f.Kind != Need)
		r.Ready = r.Ready && (f.OK || f.Kind == Note)
	}
	r.Labels = map[string]string{LabelReady: strconv.FormatBool(r.Ready), LabelKVM: strconv.FormatBool(findings[1].OK)}
	return r
}

func (Host) architecture() Finding {
	f := Finding{Name: "architecture", Kind: Need, OK: runtime.GOARCH == "amd64", Detail: runtime.GOARCH}
	if !f.OK {
		f.Detail += ": VMs are for amd64"
	}
	return f
}

// kvmDevice and vsockDevice are the kernel's.
const (
	kvmDevice   = "/dev/kvm"
	vsockDevice = "/dev/vhost-vsock"
)

func (h Host) kvm() Finding {
	f := Finding{Name: "kvm", Kind: Note, OK: true, Detail: kvmDevice + " makes a VM"}
	if err := makeVM(h.Root); err != nil {
		f.OK, f.Detail = false, fmt.Sprintf("%v: the guest's instructions are emulated, which takes many times as long", err)
	}
	return f
}

// vsock: one of two ways to the guest.
func (h Host) vsock() Finding {
	f := Finding{Name: "vsock", Kind: Need}
	_, device := h.Root.Stat(vsockDevice)
	daemon, lookErr := h.Root.LookPath(h.Config.Vsock.DevicePath)
	switch backend := h.Config.Vsock.Backend; {
	case device == nil && backend != "vhost-user":
		f.OK, f.Detail = true, vsockDevice
	case lookErr == nil && backend != "kernel":
		f.OK, f.Detail = true, daemon
	default:
		f.Detail = fmt.Sprintf("neither %s (modprobe vhost_vsock) nor the program %s, with vsock.backend = %q", vsockDevice, h.Config.Vsock.DevicePath, backend)
	}
	return f
}

// tunDevice is the kernel's (Documentation/networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// tun: without it no VM has an interface.
func (h Host) tun() Finding {
	if h.Config.Network.Model != "tap" {
		return Finding{}
	}
	f := Finding{Name: "tun", Kind: Need, OK: true, Detail: tunDevice}
	if _, err := h.Root.Stat(tunDevice); err != nil {
		f.OK, f.Detail = false, fmt.Sprintf("no %s, with network.model = \"tap\": modprobe tun", tunDevice)
	}
	return f
}

// erofs: nothing is mounted on the host, but containerd's snapshotter does not
// load without (findErofs in plugins/snapshots/erofs/erofs_linux.go).
func (h Host) erofs() Finding {
	f := Finding{Name: "erofs", Kind: Need, Detail: "the kernel knows EROFS"}
	data, err := h.Root.ReadFile("/proc/filesystems")
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	if f.OK = bytes.Contains(data, []byte("\terofs\n")); !f.OK {
		f.Detail = "the kernel does not know EROFS, without which containerd's snapshotter does not load: modprobe erofs"
	}
	return f
}

// program asks a program for its version.
func (h Host) program(ctx context.Context, name, program string, oldest version, fix string, args ...string) Finding {
	f := Finding{Name: name, Kind: Need}
	if len(args) == 0 {
		args = []string{"--version"}
	}
	found, err := h.Root.LookPath(program)
	if err != nil {
		f.Detail = fmt.Sprintf("%v: %s", err, fix)
		return f
	}
	v, err := h.ask(ctx, found, args...)
	switch {
	case err != nil:
		f.Detail = err.Error()
	case v.less(oldest):
		f.Detail = fmt.Sprintf("%s is version %s, older than %s: %s", found, v, oldest, fix)
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%s is version %s", found, v)
	}
	return f
}

func (h Host) ask(ctx context.Context, program string, args ...string) (version, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	out, err := h.Root.Run(ctx, nil, program, args...)
	if err != nil {
		return nil, err
	}
	v, err := parseVersion(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	return v, nil
}

// virtiofsd is asked for only where the configuration wants it.
func (h Host) virtiofsd(ctx context.Context) Finding {
	if h.Config.Mounts.Bind != configs.BindVirtioFS {
		return Finding{}
	}
	return h.program(ctx, "virtiofsd", h.Config.Mounts.Virtiofsd, version{1, 10}, "install virtiofsd")
}

func (h Host) containerd(ctx context.Context) Finding {
	f := Finding{Name: "containerd", Kind: Need}
	release, err := Release(ctx, h.Root, h.Containerd)
	if err == nil {
		_, err = dropin.Render(release, dropin.Existing{}, dropin.Default())
	}
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, "release "+release.String()
	return f
}

// Release is the release of the containerd that is installed on a host, by the
// name or path of its program.
func Release(ctx context.Context, root hostroot.Root, containerd string) (dropin.Release, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	out, err := root.Run(ctx, nil, containerd, "--version")
	if err != nil {
		return dropin.Release{}, err
	}
	return dropin.ParseRelease(string(out))
}

// file is a part of the runtime.
func (h Host) file(name, file string, program bool) Finding {
	f := Finding{Name: name, Kind: Part, Detail: file}
	if program {
		found, err := h.Root.LookPath(file)
		if f.OK = err == nil; f.OK {
			f.Detail = found
		} else {
			f.Detail = err.Error()
		}
		return f
	}
	info, err := h.Root.Stat(path.Clean(file))
	switch {
	case err != nil:
		f.Detail = err.Error()
	case !info.Mode().IsRegular():
		f.Detail = file + " is not a regular file"
	default:
		f.OK = true
	}
	return f
}

// version is as long as the program says.
type version []int

func (v version) String() string {
	parts := make([]string, len(v))
	for i, n := range v {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ".")
}

func (v version) less(w version) bool {
	for i, n := range w {
		at := 0
		if i < len(v) {
			at = v[i]
		}
		if at != n {
			return at < n
		}
	}
	return false
}

// versionText: the first one that a program prints is its own, as in
// "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
// "mkfs.erofs (erofs-utils) 1.9.4", "mke2fs 1.47.0 (5-Feb-2023)".
var versionText = regexp.MustCompile(`(?:^|[\s(])v?(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?`)

func parseVersion(out []byte) (version, error) {
	m := versionText.FindSubmatch(out)
	if m == nil {
		first, _, _ := bytes.Cut(out, []byte("\n"))
		return nil, fmt.Errorf("says no version: %.100q", first)
	}
	var v version
	for _, part := range m[1:] {
		if len(part) > 0 {
			n, _ := strconv.Atoi(string(part))
			v = append(v, n)
		}
	}
	return v, nil
}
