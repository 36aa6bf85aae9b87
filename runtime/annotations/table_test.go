package annotations

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documented reads the rows of docs/annotations.md: the annotation, what it
// sets, "refused" for one that is not honoured.
func documented(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/annotations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	line := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:`([^`]+)`|(refused)) \\|")
	for _, m := range line.FindAllStringSubmatch(string(text), -1) {
		if _, twice := rows[m[1]]; twice {
			t.Errorf("docs/annotations.md has %s twice", m[1])
		}
		rows[m[1]] = m[2] + m[3]
	}
	return rows
}

func TestEveryAnnotationIsInTheDocumentation(t *testing.T) {
	want := map[string]string{}
	for _, r := range table {
		want[r.name] = r.key
	}
	for name := range refused {
		want[name] = "refused"
	}
	got := documented(t)
	for name, what := range want {
		if got[name] != what {
			t.Errorf("%s: docs/annotations.md says %q, and the code %q", name, got[name], what)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("docs/annotations.md has %s, and the code has not", name)
		}
	}
}

// samples are a value for each key that is not its default.
var samples = map[string]string{
	"hypervisor.vcpus": "2", "hypervisor.memory_mib": "640", "hypervisor.max_vcpus": "3", "hypervisor.max_memory_mib": "700",
	"hypervisor.accelerator": "tcg", "hypervisor.slots": "64", "hypervisor.block_driver": "virtio-scsi", "hypervisor.aio": "io_uring",
	"hypervisor.machine": "q35", "network.model": "macvtap", "network.vhost_net": "true", "guest.kernel_params": "sample=1", "rootfs.layers": "merge", "rootfs.memory_upper_mib": "5",
}

func TestAnAnnotationSetsTheKeyThatItSaysAndNoOther(t *testing.T) {
	for _, r := range table {
		before := everything()
		if r.key == "hypervisor.machine" {
			before.Hypervisor.Machine = "another" // as long as there is but one
		}
		s := state{config: before, most: most}
		if err := s.apply(r, samples[r.key]); err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		if got := changed(reflect.ValueOf(before), reflect.ValueOf(s.config), ""); !slices.Equal(got, []string{r.key}) {
			t.Errorf("%s sets %q, want %s", r.name, got, r.key)
		}
	}
}

// changed are the keys in which two configurations differ.
func changed(a, b reflect.Value, prefix string) (keys []string) {
	for i := range a.NumField() {
		key := prefix + a.Type().Field(i).Tag.Get("toml")
		switch {
		case a.Field(i).Kind() == reflect.Struct:
			keys = append(keys, changed(a.Field(i), b.Field(i), key+".")...)
		case !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
			keys = append(keys, key)
		}
	}
	return keys
}

// TestOurNamesAreThoseOfTheKeys: who knows the configuration knows them.
func TestOurNamesAreThoseOfTheKeys(t *testing.T) {
	for _, r := range table {
		if key, ours := strings.CutPrefix(r.name, own); ours && key != r.key {
			t.Errorf("%s sets %s", r.name, r.key)
		}
	}
}
