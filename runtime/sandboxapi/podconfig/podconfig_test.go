package podconfig

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestIsAPartOfTheCRI walks the messages here and asks of each field that the CRI
// has it, with the number and the type that it has here.
func TestIsAPartOfTheCRI(t *testing.T) {
	ours, theirs := (&PodSandboxConfig{}).ProtoReflect().Descriptor(), (&cri.PodSandboxConfig{}).ProtoReflect().Descriptor()
	if theirs.FullName() != Name {
		t.Errorf("the CRI's message is %s, not %s", theirs.FullName(), Name)
	}
	if n := compare(t, ours, theirs); n < 10 {
		t.Errorf("compared %d fields", n)
	}
}

// compare returns how many fields it has compared.
func compare(t *testing.T, ours, theirs protoreflect.MessageDescriptor) (fields int) {
	for i := range ours.Fields().Len() {
		field := ours.Fields().Get(i)
		fields++
		other := theirs.Fields().ByName(field.Name())
		switch {
		case other == nil:
			t.Errorf("%s: the CRI has no such field", field.FullName())
			continue
		case field.Number() != other.Number() || field.Kind() != other.Kind() || field.Cardinality() != other.Cardinality() || field.IsMap() != other.IsMap():
			t.Errorf("%s is %d, %s %s here, and in the CRI %d, %s %s", field.FullName(),
				field.Number(), field.Cardinality(), field.Kind(), other.Number(), other.Cardinality(), other.Kind())
		}
		if field.Kind() == protoreflect.MessageKind && other.Kind() == protoreflect.MessageKind {
			fields += compare(t, field.Message(), other.Message())
		}
		if field.Kind() == protoreflect.EnumKind && other.Kind() == protoreflect.EnumKind {
			for j := range field.Enum().Values().Len() {
				value := field.Enum().Values().Get(j)
				if same := other.Enum().Values().ByName(value.Name()); same == nil || same.Number() != value.Number() {
					t.Errorf("%s: the CRI has no %s = %d", field.Enum().FullName(), value.Name(), value.Number())
				}
			}
		}
	}
	return fields
}

func TestUnpackReadsWhatContainerdPacks(t *testing.T) {
	packed, err := anypb.New(&cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "not read", Uid: "u"}, Hostname: "h",
		DnsConfig:   &cri.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}},
		Annotations: map[string]string{"k": "v"},
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/pod1", Sysctls: map[string]string{"net.x": "1"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{Privileged: true,
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE, Network: cri.NamespaceMode_NODE, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unpack(packed)
	if err != nil {
		t.Fatal(err)
	}
	want := &PodSandboxConfig{
		Hostname:    "h",
		DnsConfig:   &DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}},
		Annotations: map[string]string{"k": "v"},
		Linux: &LinuxPodSandboxConfig{CgroupParent: "/pod1", Sysctls: map[string]string{"net.x": "1"},
			SecurityContext: &LinuxSandboxSecurityContext{NamespaceOptions: &NamespaceOption{Network: NamespaceMode_NODE, UsernsOptions: &UserNamespace{Mode: NamespaceMode_NODE}}}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestUnpackRefusesOtherMessages(t *testing.T) {
	for _, packed := range []*anypb.Any{
		{TypeUrl: "runtime.v1.DNSConfig"},
		{TypeUrl: "type.googleapis.com/runtime.v1alpha2.PodSandboxConfig"},
		{TypeUrl: "type.googleapis.com/"},
		{TypeUrl: Name, Value: []byte{0xff}},
		{TypeUrl: strings.Repeat("x", 1000)},
	} {
		if got, err := Unpack(packed); err == nil {
			t.Errorf("%v: %v", packed, got)
		} else if len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
	for _, packed := range []*anypb.Any{nil, {}, {TypeUrl: Name}, {TypeUrl: "type.googleapis.com/" + Name}} {
		if got, err := Unpack(packed); err != nil || !proto.Equal(got, &PodSandboxConfig{}) {
			t.Errorf("%v: %v, %v", packed, got, err)
		}
	}
}
