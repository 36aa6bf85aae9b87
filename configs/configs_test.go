package configs

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func TestDefaultsAreValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.Deadlines.Agent.Std() != time.Minute || c.Hypervisor.MemoryMiB != 512 {
		t.Errorf("defaults not read from configuration.toml: %+v", c)
	}
}

// A key that the struct has and the file has not would have a default that
// nobody can read.
func TestEveryKeyIsInTheFile(t *testing.T) {
	var doc map[string]any
	if err := toml.Unmarshal(defaults, &doc); err != nil {
		t.Fatal(err)
	}
	var walk func(prefix string, typ reflect.Type, doc map[string]any)
	walk = func(prefix string, typ reflect.Type, doc map[string]any) {
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("toml")
			value, ok := doc[key]
			if !ok {
				t.Errorf("configuration.toml lacks %s%s", prefix, key)
				continue
			}
			if typ.Field(i).Type.Kind() == reflect.Struct {
				walk(prefix+key+".", typ.Field(i).Type, value.(map[string]any))
			}
		}
	}
	walk("", reflect.TypeFor[Config](), doc)
}

func TestFileOverridesDefaults(t *testing.T) {
	c, err := Parse("t.toml", []byte("[hypervisor]\nmemory_mib = 1024\n[deadlines]\nagent = \"90s\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Hypervisor.MemoryMiB != 1024 || c.Deadlines.Agent.Std() != 90*time.Second {
		t.Errorf("not overridden: %+v", c)
	}
	if c.Hypervisor.Machine != "q35" {
		t.Errorf("default lost: machine %q", c.Hypervisor.Machine)
	}
}

func TestBadConfigurationNamesFileLineAndKey(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "[hypervisor]\nvcpus = 1\nmemory = 5\n", []string{"t.toml:3:1:", `unknown key "hypervisor.memory"`}},
		{"unknown table", "\n[qemu]\nx = 1\n", []string{"t.toml:2:2:", `unknown key "qemu"`}},
		{"wrong type", "[hypervisor]\nvcpus = \"two\"\n", []string{"t.toml:2:"}},
		{"syntax", "state_dir = \n", []string{"t.toml:1:"}},
		{"bad duration", "[deadlines]\nagent = \"soon\"\n", []string{"t.toml:2:", "soon"}},
		{"zero deadline", "[deadlines]\nagent = \"0s\"\n", []string{"deadlines.agent"}},
		{"accelerator", "[hypervisor]\naccelerator = \"hax\"\n", []string{"hypervisor.accelerator", "auto, kvm, tcg"}},
		{"memory", "[hypervisor]\nmemory_mib = 12\n", []string{"hypervisor.memory_mib", "128"}},
		{"fewer processors at most", "[hypervisor]\nvcpus = 4\nmax_vcpus = 2\n", []string{"hypervisor.max_vcpus", "4"}},
		{"less memory at most", "[hypervisor]\nmax_memory_mib = 511\n", []string{"hypervisor.max_memory_mib", "512"}},
		{"suboption injection", "[guest]\nkernel = \"/boot/x,readonly=off\"\n", []string{"guest.kernel", "comma"}},
		{"relative kernel", "[guest]\nkernel = \"vmlinux\"\n", []string{"guest.kernel", "absolute"}},
		{"broken pattern", "[annotations]\nallowed = [\"io.erofsvm.[\"]\n", []string{"annotations.allowed", "io.erofsvm.["}},
		{"empty pattern", "[annotations]\nallowed = [\"\"]\n", []string{"annotations.allowed"}},
		{"mounts", "[mounts]\nbind = \"nfs\"\n", []string{"mounts.bind", "copy, virtiofs"}},
		{"no daemon", "[mounts]\nvirtiofsd = \"\"\n", []string{"mounts.virtiofsd", "empty"}},
		{"emptyDirs", "[mounts]\nempty_dir = \"host\"\nempty_dir_mib = 1\n", []string{"mounts.empty_dir:", "guest, bind", "mounts.empty_dir_mib", "64"}},
		{"two errors at once", "[hypervisor]\nvcpus = 0\nslots = 0\n", []string{"vcpus", "slots"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse("t.toml", []byte(tc.text))
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("[hypervisor]\nvcpus = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(file); err != nil || c.Hypervisor.VCPUs != 3 {
		t.Errorf("Load(%s) = %+v, %v", file, c.Hypervisor, err)
	}
	if _, err := Load(filepath.Join(dir, "missing.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a directory was taken as configuration")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(defaults)
	f.Add([]byte("[hypervisor]\nvcpus = 0x7fffffffffffffff\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("fuzz", data)
		if err == nil {
			if verr := c.Validate(); verr != nil {
				t.Fatalf("accepted but invalid: %v", verr)
			}
		}
	})
}
