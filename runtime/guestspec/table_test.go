package guestspec

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// row is a line of the table in docs/oci-spec.md.
var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\|")

// table reads the words of docs/oci-spec.md, by field.
func table(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "oci-spec.md"))
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		if words[m[1]] != "" {
			t.Errorf("docs/oci-spec.md has %s twice", m[1])
		}
		words[m[1]] = m[2]
	}
	return words
}

// rowOf is the row that speaks of a field: its own, or one of a section.
func rowOf(words map[string]string, field string) string {
	if words[field] != "" {
		return field
	}
	for at := field; strings.Contains(at, "."); {
		at = at[:strings.LastIndex(at, ".")]
		if words[at+".*"] != "" {
			return at + ".*"
		}
	}
	return ""
}

// fields lists every leaf of a type by its JSON path. Maps and lists of plain
// values are leaves.
func fields(of reflect.Type, prefix string) []string {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice:
		return fields(of.Elem(), prefix)
	case reflect.Map:
		if of.Elem().Kind() == reflect.Struct {
			return fields(of.Elem(), prefix)
		}
	case reflect.Struct:
		var all []string
		for i := range of.NumField() {
			f := of.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous:
				all = append(all, fields(f.Type, prefix)...)
			case prefix == "":
				all = append(all, fields(f.Type, name)...)
			default:
				all = append(all, fields(f.Type, prefix+"."+name)...)
			}
		}
		return all
	}
	return []string{prefix}
}

func TestEveryFieldOfTheSpecHasARow(t *testing.T) {
	words := table(t)
	used := map[string]bool{}
	for _, f := range fields(reflect.TypeFor[specs.Spec](), "") {
		row := rowOf(words, f)
		if row == "" {
			t.Errorf("docs/oci-spec.md says nothing of %s", f)
		}
		used[row] = true
	}
	for row := range words {
		if !used[row] {
			t.Errorf("docs/oci-spec.md has %s, which is no field of the spec", row)
		}
	}
}

// surroundings are the values that others need beside them to mean anything:
// merged, as JSON, into the spec before the field is set.
var surroundings = map[string]string{
	"process.rlimits":                `{"process":{"rlimits":[{"type":"RLIMIT_NOFILE","hard":5,"soft":5}]}}`,
	"mounts":                         `{"mounts":[{"destination":"/m","type":"tmpfs","source":"tmpfs"}]}`,
	"mounts.source":                  `{"mounts":[{"destination":"/m","type":"bind","source":"/before","options":["rbind"]}]}`,
	"linux.namespaces":               `{"linux":{"namespaces":[{"type":"pid"}]}}`,
	"linux.devices":                  `{"linux":{"devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229,"fileMode":384}]}}`,
	"linux.devices.type":             `{"linux":{"devices":[{"path":"/dev/fuse","type":"u","major":10,"minor":229}]}}`,
	"linux.seccomp":                  `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":""}]}]}}}`,
	"linux.resources.devices":        `{"linux":{"resources":{"devices":[{"allow":false}]}}}`,
	"linux.resources.hugepageLimits": `{"linux":{"resources":{"hugepageLimits":[{"pageSize":"1GB","limit":0}]}}}`,
	"hooks.prestart":                 `{"hooks":{"prestart":[{"path":"/before"}]}}`,
	"hooks.createRuntime":            `{"hooks":{"createRuntime":[{"path":"/before"}]}}`,
	"hooks.poststart":                `{"hooks":{"poststart":[{"path":"/before"}]}}`,
	"hooks.poststop":                 `{"hooks":{"poststop":[{"path":"/before"}]}}`,
}

// samples are values for fields that do not take any.
var samples = map[string]any{
	"process.cwd": "/sample", "mounts.destination": "/sample", "mounts.type": "sysfs", "mounts.source": "/sample",
	"linux.namespaces.type": specs.IPCNamespace, "linux.rootfsPropagation": "rshared", "linux.devices.type": "c",
	"linux.cgroupsPath": "a:b:c", "linux.devices.path": "/dev/sample",
	"hooks.prestart.path": "/sample", "hooks.createRuntime.path": "/sample", "hooks.createContainer.path": "/sample",
	"hooks.startContainer.path": "/sample", "hooks.poststart.path": "/sample", "hooks.poststop.path": "/sample",
}

// TestTheTableSaysWhatHappens sets every field of the spec, one at a time, and
// compares what becomes of it with the table.
func TestTheTableSaysWhatHappens(t *testing.T) {
	words := table(t)
	for _, field := range fields(reflect.TypeFor[specs.Spec](), "") {
		t.Run(field, func(t *testing.T) {
			row := rowOf(words, field)
			before, after := surrounded(t, field), surrounded(t, field)
			setField(t, reflect.ValueOf(after).Elem(), strings.Split(field, "."), field)
			base, err := Convert(before, options)
			if err != nil {
				t.Fatalf("without the field: %v", err)
			}
			got, err := Convert(after, options)
			said := ""
			switch {
			case err != nil:
				said = "refused"
				if section, _, _ := strings.Cut(field, "."); !strings.Contains(err.Error(), section) {
					t.Errorf("the refusal does not name the field: %v", err)
				}
			case len(got.Dropped) > len(base.Dropped):
				said = "dropped"
				last := got.Dropped[len(got.Dropped)-1]
				if !strings.HasPrefix(strings.ReplaceAll(last, " ", ": "), strings.TrimSuffix(row, ".*")) && !strings.HasPrefix(field, "linux.devices") {
					t.Errorf("what was dropped is called %q, and the field %s", last, field)
				}
			case !reflect.DeepEqual(base.Hooks, got.Hooks):
				said = "host"
			case field == "root.path":
				said = "rewritten"
				if got.Spec.Root.Path != options.Rootfs {
					t.Errorf("it is %q", got.Spec.Root.Path)
				}
			case proto.Equal(base.Spec, got.Spec) && reflect.DeepEqual(base.Copies, got.Copies):
				t.Fatal("it makes no difference, and nothing says so")
			case hasSample(t, got.Spec, after, field):
				said = "kept"
			default:
				said = "rewritten"
			}
			if said != words[row] {
				t.Errorf("it is %s, and docs/oci-spec.md says %s (%v)", said, words[row], err)
			}
		})
	}
}

var options = Options{Bundle: "/bundle", Rootfs: "/guest/rootfs", Copies: "/guest/copies"}

// hasSample says whether the guest's spec still has the value that was set.
func hasSample(t *testing.T, guest proto.Message, host *specs.Spec, field string) bool {
	t.Helper()
	if field != "mounts.source" && field != "linux.cgroupsPath" {
		return true // something changed, and these are the two that change by themselves
	}
	text, err := json.Marshal(guest)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), `"`+samples[field].(string)+`"`)
}

// surrounded is the smallest spec in which the field can stand.
func surrounded(t *testing.T, field string) *specs.Spec {
	t.Helper()
	spec := &specs.Spec{
		Process: &specs.Process{Args: []string{"before"}, Cwd: "/"}, Root: &specs.Root{}, Linux: &specs.Linux{},
	}
	for at := field; ; at = at[:strings.LastIndex(at, ".")] {
		if text, ok := surroundings[at]; ok {
			if err := json.Unmarshal([]byte(text), spec); err != nil {
				t.Fatal(err)
			}
			return spec
		}
		if !strings.Contains(at, ".") {
			return spec
		}
	}
}

// setField sets the field at a path, and makes what lies on the way.
func setField(t *testing.T, v reflect.Value, path []string, field string) {
	t.Helper()
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		setField(t, v.Elem(), path, field)
		return
	case reflect.Slice:
		if len(path) > 0 || v.Type().Elem().Kind() == reflect.Struct {
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			}
			setField(t, v.Index(0), path, field)
			return
		}
	case reflect.Map:
		if len(path) > 0 {
			elem := reflect.New(v.Type().Elem()).Elem()
			setField(t, elem, path, field)
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf("sample"), elem)
			return
		}
	case reflect.Struct:
		if len(path) == 0 {
			return // an empty section
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && hasField(f.Type, path[0]):
				setField(t, v.Field(i), path, field)
				return
			case name == path[0]:
				setField(t, v.Field(i), path[1:], field)
				return
			}
		}
		t.Fatalf("no field %v in %s", path, v.Type())
	}
	if s, ok := samples[field]; ok {
		v.Set(reflect.ValueOf(s).Convert(v.Type()))
		return
	}
	setSample(t, v)
}

func hasField(of reflect.Type, name string) bool {
	for i := range of.NumField() {
		if tag, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ","); tag == name {
			return true
		}
	}
	return false
}

func setSample(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("sample")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		setSample(t, v.Index(0))
	case reflect.Map:
		elem := reflect.New(v.Type().Elem()).Elem()
		setSample(t, elem)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("sample"), elem)
	case reflect.Interface:
		v.Set(reflect.ValueOf("sample"))
	default:
		t.Fatalf("no sample for a %s", v.Type())
	}
}
