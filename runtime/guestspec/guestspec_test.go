package guestspec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
)

var update = flag.Bool("update", false, "write the golden files anew")

func load(t *testing.T, name string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// TestGolden compares the guest's spec and what was dropped, field by field,
// with testdata/<name>.golden.
func TestGolden(t *testing.T) {
	for _, name := range []string{"ctr", "everything"} {
		t.Run(name, func(t *testing.T) {
			host := load(t, name+".json")
			before, _ := json.Marshal(host)
			r, err := Convert(host, "/run/kata-containers/c1/rootfs")
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(host); !bytes.Equal(before, after) {
				t.Error("the host's spec was changed")
			}
			raw, err := protojson.Marshal(r.Spec)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, raw, "", "  "); err != nil { // protojson's own indent varies on purpose
				t.Fatal(err)
			}
			for _, d := range r.Dropped {
				got.WriteString("\ndropped: " + d)
			}
			got.WriteByte('\n')
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("differs from %s (run with -update and look at the diff):\n%s", golden, got.Bytes())
			}
		})
	}
}

func TestRefusalsNameTheField(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*specs.Spec)
		class  func(error) bool
		text   string
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, errdefs.IsInvalidArgument, "process"},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, errdefs.IsInvalidArgument, "process.args"},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, errdefs.IsInvalidArgument, "process.cwd"},
		{"hook", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/x"}}} }, errdefs.IsNotImplemented, "hooks"},
		{"bind mount", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind"}})
		}, errdefs.IsNotImplemented, "/data"},
		{"bind mount that says so in its options only", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs", Source: "/srv", Options: []string{"bind"}})
		}, errdefs.IsNotImplemented, "/data"},
		{"relative mount", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "data", Type: "tmpfs"})
		}, errdefs.IsInvalidArgument, `"data"`},
		{"user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, errdefs.IsNotImplemented, "user namespace"},
		{"id mapping", func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, errdefs.IsNotImplemented, "uidMappings"},
		{"joined namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/1/ns/pid"}}
		}, errdefs.IsNotImplemented, "/proc/1/ns/pid"},
		{"seccomp", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }, errdefs.IsNotImplemented, "seccomp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := load(t, "ctr.json")
			tc.change(s)
			_, err := Convert(s, "/r")
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want one with %q", err, tc.text)
			}
		})
	}
}

func TestCgroupsPathIsOneOfTheGuest(t *testing.T) {
	for in, want := range map[string]string{
		"/default/c1":                 "/default/c1",
		"k8s.io/c1":                   "/k8s.io/c1",
		"pod.slice:cri-containerd:c1": "/pod.slice/cri-containerd-c1",
		"../../escape":                "/escape",
	} {
		if got := new(Result).cgroupsPath(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestTheNetworkNamespaceIsTheVMs(t *testing.T) {
	r, err := Convert(load(t, "ctr.json"), "/r")
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range r.Spec.Linux.Namespaces {
		if ns.Type == string(specs.NetworkNamespace) || ns.Path != "" {
			t.Errorf("namespace %v reaches the guest", ns)
		}
	}
	if !slices.ContainsFunc(load(t, "ctr.json").Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		t.Error("the test's spec has no network namespace")
	}
}
