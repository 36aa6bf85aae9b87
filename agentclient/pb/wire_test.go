package pb

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestDescriptorsAreTheWire holds the generated code to the table of the
// protocol, in both directions: nothing is missing, nothing was added.
func TestDescriptorsAreTheWire(t *testing.T) {
	text, err := os.ReadFile("testdata/wire.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := tableFacts(string(text))
	if len(want) < 400 {
		t.Fatalf("the table gives only %d facts", len(want))
	}
	var have []string
	for _, file := range []protoreflect.FileDescriptor{
		File_github_com_erofsvm_erofsvm_agentclient_pb_agent_proto,
		File_github_com_erofsvm_erofsvm_agentclient_pb_types_proto,
		File_github_com_erofsvm_erofsvm_agentclient_pb_health_proto,
		File_github_com_erofsvm_erofsvm_agentclient_pb_oci_proto,
		File_github_com_erofsvm_erofsvm_agentclient_pb_csi_proto,
	} {
		have = append(have, fileFacts(file)...)
	}
	for _, fact := range want {
		if !slices.Contains(have, fact) {
			t.Errorf("missing: %s", fact)
		}
	}
	for _, fact := range have {
		if !slices.Contains(want, fact) {
			t.Errorf("not in the table: %s", fact)
		}
	}
}

// tableFacts flattens the table to lines such as
// "grpc.Storage 2: repeated string driver_options".
func tableFacts(text string) []string {
	var (
		facts          []string
		pkg, top, enum string
	)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		words := strings.Fields(line)
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case len(words) == 0 || words[0] == "##":
		case words[0] == "package":
			pkg = words[1]
		case words[0] == "service" || words[0] == "message":
			top, enum = pkg+"."+words[1], ""
			if words[0] == "message" {
				facts = append(facts, top)
			}
		case words[0] == "enum" && indent == 0:
			top, enum = pkg+"."+words[1], pkg+"."+words[1]
		case words[0] == "enum":
			enum = top + "." + words[1]
		case words[0] == "oneof":
			enum = ""
		case strings.Contains(line, " -> "):
			call, reply, _ := strings.Cut(strings.TrimSpace(line), ") -> ")
			method, request, _ := strings.Cut(call, "(")
			facts = append(facts, fmt.Sprintf("%s %s %s %s", top, method, full(pkg, request), full(pkg, reply)))
		case strings.HasSuffix(words[0], ":"): // a field
			facts = append(facts, top+" "+strings.Join(words, " "))
		default: // a value of an enum
			facts = append(facts, enum+" "+strings.Join(words, " "))
		}
	}
	return facts
}

func full(pkg, name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	return pkg + "." + name
}

func fileFacts(file protoreflect.FileDescriptor) []string {
	var facts []string
	for i := range file.Services().Len() {
		s := file.Services().Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			facts = append(facts, fmt.Sprintf("%s %s %s %s", s.FullName(), m.Name(), m.Input().FullName(), m.Output().FullName()))
		}
	}
	facts = append(facts, enumFacts(file.Enums(), string(file.Package()))...)
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		facts = append(facts, string(m.FullName()))
		facts = append(facts, enumFacts(m.Enums(), string(m.FullName()))...)
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			facts = append(facts, fmt.Sprintf("%s %d: %s %s", m.FullName(), f.Number(), fieldType(f, file.Package()), f.Name()))
		}
	}
	return facts
}

func enumFacts(enums protoreflect.EnumDescriptors, parent string) []string {
	var facts []string
	for i := range enums.Len() {
		e := enums.Get(i)
		for j := range e.Values().Len() {
			v := e.Values().Get(j)
			facts = append(facts, fmt.Sprintf("%s.%s %d %s", parent, e.Name(), v.Number(), v.Name()))
		}
	}
	return facts
}

func fieldType(f protoreflect.FieldDescriptor, pkg protoreflect.FullName) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s, %s>", f.MapKey().Kind(), elementType(f.MapValue(), pkg))
	case f.IsList():
		return "repeated " + elementType(f, pkg)
	case f.HasOptionalKeyword():
		return "optional " + elementType(f, pkg)
	}
	return elementType(f, pkg)
}

// elementType names messages and enums as the table does: those of the same
// package without it, and nested ones by their own name.
func elementType(f protoreflect.FieldDescriptor, pkg protoreflect.FullName) string {
	var d protoreflect.Descriptor
	switch f.Kind() {
	case protoreflect.MessageKind:
		d = f.Message()
	case protoreflect.EnumKind:
		d = f.Enum()
	default:
		return f.Kind().String()
	}
	if d.ParentFile().Package() == pkg {
		return string(d.Name())
	}
	return string(d.FullName())
}
