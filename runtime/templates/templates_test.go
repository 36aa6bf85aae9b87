package templates

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/hypervisor/template"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

// host is a configuration with a template, and another one that could not be built.
func host(t *testing.T) (file string, key template.Key) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "configuration.toml")
	if err := os.WriteFile(file, []byte(`cache_dir = "`+dir+`"`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	store := sandbox.TemplateStore(c)
	good := qemu.Description{Arguments: []string{"-smp", "3", "-m", "size=640M"}}
	err = store.Build(t.Context(), good, func(_ context.Context, _ string, to qemu.Saved) error {
		_, err := to.State.WriteString("state")
		return errors.Join(err, to.Memory.Truncate(1<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	if key, err = template.KeyOf(good); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the guest's kernel panicked\nand said a lot")
	if err := store.Build(t.Context(), qemu.Description{}, func(context.Context, string, qemu.Saved) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	return file, key
}

func run(args ...string) (string, error) {
	cmd := NewCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestListSaysWhatThereIs(t *testing.T) {
	file, key := host(t)
	out, err := run("list", "--config", file)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != 3 {
		t.Fatalf("%v\n%s", err, out)
	}
	if f := strings.Fields(lines[1]); f[0] != string(key) || f[1] != "3" || f[2] != "size=640M" || f[len(f)-1] != "0" {
		t.Errorf("%q", lines[1])
	}
	if !strings.HasSuffix(lines[2], "could not be built: the guest's kernel panicked") {
		t.Errorf("%q", lines[2])
	}
	out, err = run("list", "--config", file, "-o", "json")
	var all []template.Info
	if err := errors.Join(err, json.Unmarshal([]byte(out), &all)); err != nil || len(all) != 2 || all[0].Key != key {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run("list", "--config", file, "-o", "yaml"); err == nil || !strings.Contains(err.Error(), "yaml") {
		t.Errorf("%v", err)
	}
}

func TestRemoveTakesKeysOrAll(t *testing.T) {
	file, key := host(t)
	for _, args := range [][]string{{}, {"--all", string(key)}, {"../../etc"}} {
		if _, err := run(append([]string{"remove", "--config", file}, args...)...); err == nil {
			t.Errorf("remove %q is taken", args)
		}
	}
	for _, args := range [][]string{{string(key)}, {string(key)}, {"--all"}} {
		if out, err := run(append([]string{"remove", "--config", file}, args...)...); err != nil {
			t.Errorf("remove %q: %v\n%s", args, err, out)
		}
	}
	if out, err := run("list", "--config", file, "-o", "json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestBuildNamesTheKeyThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "configuration.toml")
	if err := os.WriteFile(file, []byte("cache_dir = \""+dir+"\"\n[hypervisor]\npath = \"/no/qemu\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run("build", "--config", file); err == nil || !strings.Contains(err.Error(), "hypervisor.path") {
		t.Errorf("%v", err)
	}
	if _, err := run("build", "--config", file, "--memory-mib", "1"); err == nil || !strings.Contains(err.Error(), "hypervisor.memory_mib") {
		t.Errorf("%v", err)
	}
}
