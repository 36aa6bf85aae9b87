package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor"
	"github.com/erofsvm/erofsvm/test/need"
)

// AttachShare takes a share if its trees are there, and keeps in words what it
// has in it.
func (v *fakeVM) AttachShare(_ context.Context, s hypervisor.Share) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.disks = append(v.disks, s.ID)
	for _, e := range s.Entries {
		if _, err := e.Tree.Stat(); err != nil {
			return err
		}
		v.entries = append(v.entries, fmt.Sprintf("%s is %s, read-only %v, receive %v", e.Name, e.Tree.Name(), e.ReadOnly, e.Receive))
	}
	if !slices.Contains(s.Hide, "proc") {
		return errors.New("the kernel's filesystems are not hidden")
	}
	return v.share
}

// sharing is a world whose configuration has guests see the host's files.
func sharing(t *testing.T) *world {
	t.Helper()
	need.Root(t, "to clone mounts")
	w := newWorld(t, newFakeAgent())
	w.config.Mounts.Bind, w.config.Mounts.Virtiofsd = configs.BindVirtioFS, "true"
	return w
}

func bindSpec(mounts ...string) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"mounts":[%s]}`, strings.Join(mounts, ","))
}

// TestBindMountsAreOneShareOfTheContainer, which goes with it.
func TestBindMountsAreOneShareOfTheContainer(t *testing.T) {
	w := sharing(t)
	source := t.TempDir()
	file := filepath.Join(source, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec := bindSpec(`{"destination":"/proc","type":"proc","source":"proc"}`,
		fmt.Sprintf(`{"destination":"/data","type":"bind","source":%q,"options":["rbind","ro"]}`, source),
		fmt.Sprintf(`{"destination":"/one","type":"bind","source":%q,"options":["bind","rslave"]}`, file))
	for _, c := range []struct{ id, spec string }{{"none", ""}, {"c", spec}} {
		if _, err := w.Create(t.Context(), w.request(t, c.id, c.spec)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		fmt.Sprintf("1 is %s, read-only true, receive false", source),
		fmt.Sprintf("2 is %s, read-only false, receive true", file),
	}
	if !slices.Equal(w.vm.entries, want) || len(w.agent.copied) != 0 {
		t.Errorf("shared %q, want %q; copied %v", w.vm.entries, want, w.agent.copied)
	}
	created := w.agent.created[1]
	storage := created.GetStorages()[len(created.GetStorages())-1]
	if storage.GetDriver() != "virtio-fs" || storage.GetSource() != "c2-share" || storage.GetMountPoint() != "/run/kata-containers/c/share" {
		t.Errorf("storage %v", storage)
	}
	if n := len(w.agent.created[0].GetStorages()); n != len(created.GetStorages())-1 {
		t.Errorf("a container without bind mounts has %d storages", n)
	}
	var sources []string
	for _, m := range created.GetOCI().GetMounts()[1:] {
		sources = append(sources, m.GetSource())
	}
	if want := []string{"/run/kata-containers/c/share/1", "/run/kata-containers/c/share/2"}; !slices.Equal(sources, want) {
		t.Errorf("mounts of %q, want %q", sources, want)
	}
	if !slices.Contains(w.vm.attached(), "c2-share") {
		t.Errorf("attached %q", w.vm.attached())
	}
	if _, err := w.Delete(t.Context(), "c", ""); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(w.vm.attached(), "c2-share") {
		t.Error("the share outlives its container")
	}
}

// TestAShareThatCannotBeHadFailsTheCreation and leaves nothing.
func TestAShareThatCannotBeHadFailsTheCreation(t *testing.T) {
	w := sharing(t)
	if _, err := w.Create(t.Context(), w.request(t, "a", "")); err != nil {
		t.Fatal(err)
	}
	w.vm.share = errors.New("no daemon")
	spec := bindSpec(fmt.Sprintf(`{"destination":"/data","type":"bind","source":%q,"options":["rbind"]}`, t.TempDir()))
	if _, err := w.Create(t.Context(), w.request(t, "b", spec)); !errors.Is(err, w.vm.share) {
		t.Errorf("error %v", err)
	}
	if left := w.vm.attached(); slices.Contains(left, "c2-share") {
		t.Errorf("left %q", left)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	_, err := w.Create(t.Context(), w.request(t, "c", bindSpec(fmt.Sprintf(`{"destination":"/data","type":"bind","source":%q}`, gone))))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/data") || !strings.Contains(err.Error(), gone) {
		t.Errorf("a source that is not there: %v", err)
	}
}

// TestWithoutVirtiofsdNoVMIsStarted where one is to show files.
func TestWithoutVirtiofsdNoVMIsStarted(t *testing.T) {
	w := sharing(t)
	w.config.Mounts.Virtiofsd = "/no/virtiofsd"
	_, err := w.Create(t.Context(), w.request(t, "c", ""))
	if err == nil || !strings.Contains(err.Error(), "mounts.virtiofsd") || w.starts != 0 {
		t.Errorf("%v, %d VMs started", err, w.starts)
	}
}
