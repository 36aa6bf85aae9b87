package sandbox

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/runtime/sizing"
)

// annotated is a spec with one annotation.
func annotated(name, value string) string {
	return fmt.Sprintf(`{"process":{"args":["x"],"cwd":"/"},"root":{},"linux":{},"annotations":{%q:%q}}`, name, value)
}

const memoryAnnotation = "io.katacontainers.config.hypervisor.default_memory"

// configured is a world that allows annotations and keeps the specs of its VMs.
func configured(t *testing.T) (*world, *[]qemu.Spec) {
	w := newWorld(t, newFakeAgent())
	w.config.Annotations.Allowed = []string{"io.katacontainers.config.*"}
	w.config.Hypervisor.MaxMemoryMiB = 1024
	var specs []qemu.Spec
	start := w.start
	w.start = func(ctx context.Context, spec qemu.Spec) (bootedVM, error) {
		specs = append(specs, spec)
		return start(ctx, spec)
	}
	return w, &specs
}

func TestTheFirstContainersAnnotationsConfigureTheVM(t *testing.T) {
	w, specs := configured(t)
	if _, err := w.Create(t.Context(), w.request(t, "first", annotated(memoryAnnotation, "768"))); err != nil {
		t.Fatal(err)
	}
	if len(*specs) != 1 || (*specs)[0].MemoryMiB != 768 {
		t.Errorf("%d VMs, want one of 768 MiB", len(*specs))
	}
}

func TestLaterContainersAnnotationsAreIgnored(t *testing.T) {
	w, specs := configured(t)
	if _, err := w.Create(t.Context(), w.request(t, "first", "")); err != nil {
		t.Fatal(err)
	}
	for id, value := range map[string]string{"second": "768", "third": "no number"} {
		if _, err := w.Create(t.Context(), w.request(t, id, annotated(memoryAnnotation, value))); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if len(*specs) != 1 || (*specs)[0].MemoryMiB != 512 {
		t.Errorf("%d VMs, want one of 512 MiB", len(*specs))
	}
}

func TestARefusedAnnotationStartsNoVM(t *testing.T) {
	for name, value := range map[string]string{
		memoryAnnotation:             "1025", // more than max_memory_mib
		"io.erofsvm.hypervisor.aio":  "threads",
		"io.erofsvm.no.such.setting": "1",
	} {
		w, specs := configured(t)
		_, err := w.Create(t.Context(), w.request(t, "c", annotated(name, value)))
		if err == nil || !strings.Contains(err.Error(), name) || !(errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err)) {
			t.Errorf("%s: %v, want a refusal with its name", name, err)
		}
		if len(*specs) != 0 || !w.Empty() {
			t.Errorf("%s: %d VMs, want none", name, len(*specs))
		}
	}
}

func TestAnAnnotationCannotAskForMoreThanTheHostHas(t *testing.T) {
	w, specs := configured(t)
	host := hostSize()
	w.config.Hypervisor.MaxVCPUs = 255
	w.config.Hypervisor.MaxMemoryMiB = 1 << 20
	for name, value := range map[string]int{
		"io.katacontainers.config.hypervisor.default_vcpus": host.VCPUs + 1,
		memoryAnnotation: host.MemoryMiB + 1,
	} {
		_, err := w.Create(t.Context(), w.request(t, "c", annotated(name, fmt.Sprint(value))))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s = %d: %v", name, value, err)
		}
	}
	if len(*specs) != 0 || host == (sizing.Size{}) {
		t.Errorf("%d VMs on a host of %+v, want none", len(*specs), host)
	}
}
