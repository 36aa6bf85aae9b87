package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// packed packs a message as containerd does, whose type URLs have no prefix.
func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

func TestConfigurationComesFromTheOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("[hypervisor]\nvcpus = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		options *anypb.Any
		vcpus   int
	}{
		{"none", nil, 1},
		{"empty", &anypb.Any{}, 1},
		{"runc's are ignored", packed(t, &runcoptions.Options{BinaryName: "crun"}), 1},
		{"a file", packed(t, &runtimeoptions.Options{ConfigPath: file}), 3},
		{"a text goes before a file", packed(t, &runtimeoptions.Options{
			ConfigPath: file, ConfigBody: []byte("[hypervisor]\nvcpus = 2\n"),
		}), 2},
	} {
		c, err := Config(tc.options)
		if err != nil || c.Hypervisor.VCPUs != tc.vcpus {
			t.Errorf("%s: %d vCPUs, %v; want %d", tc.name, c.Hypervisor.VCPUs, err, tc.vcpus)
		}
	}
}

func TestTheShimsCgroupComesFromOptionsOfRunc(t *testing.T) {
	for _, tc := range []struct {
		name    string
		options *anypb.Any
		group   string
	}{
		{"none", nil, ""},
		{"runc's without", packed(t, &runcoptions.Options{BinaryName: "crun"}), ""},
		{"runc's with", packed(t, &runcoptions.Options{ShimCgroup: "/pods/a"}), "/pods/a"},
		{"a file", packed(t, &runtimeoptions.Options{ConfigPath: "/x"}), ""},
	} {
		if group, err := ShimGroup(tc.options); err != nil || group != tc.group {
			t.Errorf("%s: %q, %v; want %q", tc.name, group, err, tc.group)
		}
	}
	if _, err := ShimGroup(&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nonsense: %v", err)
	}
}

func TestBadOptionsAreInvalidArguments(t *testing.T) {
	for _, tc := range []struct {
		options *anypb.Any
		text    string
	}{
		{packed(t, &emptypb.Empty{}), "google.protobuf.Empty"},
		{packed(t, &runtimeoptions.Options{ConfigBody: []byte("\nbad = 1\n")}), "ConfigBody:2:1"},
		{&anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{0xff}}, "runtime options"},
	} {
		if _, err := Config(tc.options); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%v: %v", tc.options, err)
		}
	}
	if _, err := Config(packed(t, &runtimeoptions.Options{ConfigPath: "/nowhere.toml"})); err == nil {
		t.Error("a file that is not there was taken")
	}
}
