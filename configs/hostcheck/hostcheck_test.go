package hostcheck

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// host is this host with programs of the test's own in PATH, each of which prints
// a line, or ends with status 1 if that is empty.
func host(t *testing.T, says map[string]string) Host {
	t.Helper()
	dir := t.TempDir()
	for name, line := range says {
		script := "#!/bin/sh\nexit 1\n"
		if line != "" {
			script = "#!/bin/sh\necho '" + line + "'\n"
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := hostroot.New("/", dir)
	if err != nil {
		t.Fatal(err)
	}
	c := configs.Default()
	for _, file := range []*string{&c.Guest.Kernel, &c.Guest.Initrd} {
		*file = filepath.Join(dir, filepath.Base(*file))
		if err := os.WriteFile(*file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root, Config: c, Shim: "shim", Containerd: "containerd"}
}

// complete are the programs of a host that has all, of these versions or later.
func complete() map[string]string {
	return map[string]string{
		"qemu-system-x86_64": "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)",
		"mkfs.erofs":         "mkfs.erofs (erofs-utils) 1.9.4",
		"mkfs.ext4":          "mke2fs 1.47.0 (5-Feb-2023)",
		"containerd":         "containerd github.com/containerd/containerd/v2 v2.4.2 ",
		"vhost-device-vsock": "vhost-device-vsock 0.3.0",
		"shim":               "x",
	}
}

func find(t *testing.T, r Report, name string) Finding {
	t.Helper()
	for _, f := range r.Findings {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("nothing is said of %s", name)
	return Finding{}
}

func TestACompleteHostIsReady(t *testing.T) {
	r := Check(t.Context(), host(t, complete()))
	for _, f := range r.Findings {
		// What is the kernel's is not the test's to give.
		if !f.OK && !slices.Contains([]string{"architecture", "kvm", "tun", "erofs"}, f.Name) {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
	if want := find(t, r, "architecture").OK && find(t, r, "tun").OK && find(t, r, "erofs").OK; r.Ready != want || r.Fit != want {
		t.Errorf("ready %v, fit %v on a kernel that has all: %v", r.Ready, r.Fit, want)
	}
	if r.Labels[LabelReady] == "" || r.Labels[LabelKVM] == "" || len(r.Labels) != 2 {
		t.Errorf("labels %v", r.Labels)
	}
}

func TestWhatIsMissingOrTooOldIsNamedWithAFix(t *testing.T) {
	for _, tc := range []struct {
		program, line string // "-" is no program
		finding       string
		kind          Kind
		says          string
	}{
		{"qemu-system-x86_64", "-", "qemu", Need, "install qemu-system-x86"},
		{"qemu-system-x86_64", "QEMU emulator version 7.1.0", "qemu", Need, "older than 7.2"},
		{"qemu-system-x86_64", "", "qemu", Need, "exit status 1"},
		{"qemu-system-x86_64", "hello", "qemu", Need, "no version"},
		{"mkfs.erofs", "mkfs.erofs (erofs-utils) 1.9.2", "mkfs.erofs", Need, "older than 1.9.3"},
		{"mkfs.erofs", "mkfs.erofs 1.9", "mkfs.erofs", Need, "older than 1.9.3"},
		{"mkfs.ext4", "-", "mkfs.ext4", Need, "e2fsprogs"},
		{"containerd", "containerd github.com/containerd/containerd v1.7.27 05044ec", "containerd", Need, "2.2 or a later"},
		{"containerd", "-", "containerd", Need, "not found"},
		{"shim", "-", "shim", Part, "not found"},
	} {
		programs := complete()
		if programs[tc.program] = tc.line; tc.line == "-" {
			delete(programs, tc.program)
		}
		r := Check(t.Context(), host(t, programs))
		f := find(t, r, tc.finding)
		if f.OK || f.Kind != tc.kind || !strings.Contains(f.Detail, tc.says) {
			t.Errorf("%s says %q: %+v, want %q", tc.program, tc.line, f, tc.says)
		}
		if r.Ready || r.Labels[LabelReady] != "false" || (tc.kind == Need && r.Fit) {
			t.Errorf("%s says %q: fit %v, ready %v", tc.program, tc.line, r.Fit, r.Ready)
		}
		if missing := r.Missing(tc.kind); !slices.ContainsFunc(missing, func(m string) bool { return strings.HasPrefix(m, tc.finding+": ") }) {
			t.Errorf("missing are %q", missing)
		}
	}
}

func TestOneWayToTheGuestIsEnough(t *testing.T) {
	_, err := os.Stat(vsockDevice)
	kernel := err == nil
	for backend, want := range map[string]bool{"auto": true, "vhost-user": true, "kernel": kernel} {
		h := host(t, complete())
		h.Config.Vsock.Backend = backend
		if f := h.vsock(); f.OK != want {
			t.Errorf("%s: %+v", backend, f)
		}
	}
	programs := complete()
	delete(programs, "vhost-device-vsock")
	if f := host(t, programs).vsock(); f.OK != kernel || !kernel && !strings.Contains(f.Detail, "modprobe vhost_vsock") {
		t.Errorf("without the daemon: %+v", f)
	}
}

func TestAHostWithoutTunHasNoTaps(t *testing.T) {
	empty, err := hostroot.New(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	h := Host{Root: empty, Config: configs.Default()}
	if f := h.tun(); f.OK || f.Kind != Need || !strings.Contains(f.Detail, "modprobe tun") {
		t.Errorf("%+v", f)
	}
	h.Config.Network.Model = "none"
	if f := h.tun(); f.Name != "" {
		t.Errorf("without a network: %+v", f)
	}
}

func TestVirtiofsdIsNeededWhereItIsWanted(t *testing.T) {
	programs := complete()
	programs["virtiofsd"] = "virtiofsd 1.9.0"
	h := host(t, programs)
	if r := Check(t.Context(), h); slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Name == "virtiofsd" || f.Name == "" }) {
		t.Errorf("%+v", r.Findings)
	}
	h.Config.Mounts.Bind, h.Config.Mounts.Virtiofsd = configs.BindVirtioFS, "virtiofsd"
	r := Check(t.Context(), h)
	if f := find(t, r, "virtiofsd"); f.OK || r.Fit || !strings.Contains(f.Detail, "older than 1.10") {
		t.Errorf("%+v", f)
	}
}

func TestAGuestThatIsMissingIsAPart(t *testing.T) {
	h := host(t, complete())
	if err := os.Remove(h.Config.Guest.Initrd); err != nil {
		t.Fatal(err)
	}
	h.Config.Guest.Kernel = t.TempDir()
	r := Check(t.Context(), h)
	if find(t, r, "initrd").OK || find(t, r, "kernel").OK || r.Ready {
		t.Errorf("%+v", r)
	}
}

func TestAContainerdThatDoesNotAnswerIsSaid(t *testing.T) {
	h := host(t, complete())
	h.Socket = filepath.Join(t.TempDir(), "no.sock")
	r := Check(t.Context(), h)
	if f := find(t, r, "plugins"); f.OK || f.Kind != Part || !strings.Contains(f.Detail, h.Socket) {
		t.Errorf("%+v", f)
	}
}

func TestTheFormsOfOutput(t *testing.T) {
	r := Check(t.Context(), host(t, complete()))
	var out bytes.Buffer
	if err := asJSON(&out, r); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back.Findings) != len(r.Findings) {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	if err := labels(&out, Report{Labels: map[string]string{LabelReady: "true", LabelKVM: "false"}}); err != nil || out.String() != "erofsvm.io/kvm=false\nerofsvm.io/ready=true\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := text(&out, Report{Findings: []Finding{{"a", Need, false, "x"}, {"b", Note, false, "y"}, {"c", Part, true, "z"}}}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"MISSING  a", "note     b", "ok       c"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q lacks %q", out.String(), line)
		}
	}
}
