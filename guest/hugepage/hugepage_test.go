package hugepage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// fakeKernel is a directory like the kernel's, with as many pages as are asked for.
func fakeKernel(t *testing.T) (*Pool, func(size string) string) {
	t.Helper()
	dir := t.TempDir()
	for size, pages := range map[string]string{"2048": "0\n", "1048576": "1\n"} {
		at := filepath.Join(dir, "hugepages-"+size+"kB")
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "nr_hugepages"), []byte(pages), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := New(dir)
	p.memory = func() (uint64, error) { return 4 << 30, nil }
	return p, func(size string) string {
		text, err := os.ReadFile(filepath.Join(dir, "hugepages-"+size+"kB", "nr_hugepages"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
}

func limit(size string, bytes uint64) specs.LinuxHugepageLimit {
	return specs.LinuxHugepageLimit{Pagesize: size, Limit: bytes}
}

func TestReservationsAddUpAndAreGivenBackOnce(t *testing.T) {
	p, pages := fakeKernel(t)
	first, err := p.Reserve([]specs.LinuxHugepageLimit{limit("2MB", 7<<20), limit("1GB", 1<<30)})
	if err != nil {
		t.Fatal(err)
	}
	second, err := p.Reserve([]specs.LinuxHugepageLimit{limit("2MB", 2<<20), limit("1GB", 0)})
	if err != nil {
		t.Fatal(err)
	}
	if small, large := pages("2048"), pages("1048576"); small != "5" || large != "2" {
		t.Errorf("%s and %s pages, want 4 and 1 of the one container, 1 of the other, and the one that was there", small, large)
	}
	for range 2 {
		if err := first.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if small, large := pages("2048"), pages("1048576"); small != "1" || large != "1" {
		t.Errorf("%s and %s pages without the first", small, large)
	}
	if err := second.Release(); err != nil || pages("2048") != "0" {
		t.Errorf("%v, %s pages at the end", err, pages("2048"))
	}
	if err := new(Reservation).Release(); err != nil {
		t.Error(err)
	}
}

func TestAReservationIsWholeOrNone(t *testing.T) {
	for name, tc := range map[string]struct {
		limits []specs.LinuxHugepageLimit
		is     func(error) bool
	}{
		"a size that is not there": {[]specs.LinuxHugepageLimit{limit("2MB", 2<<20), limit("64MB", 64<<20)}, errdefs.IsInvalidArgument},
		"no size":                  {[]specs.LinuxHugepageLimit{limit("2MB", 2<<20), limit("../2MB", 1)}, errdefs.IsInvalidArgument},
		"all memory":               {[]specs.LinuxHugepageLimit{limit("2MB", 4<<30)}, errdefs.IsResourceExhausted},
		"more than can be counted": {[]specs.LinuxHugepageLimit{limit("2MB", 1<<64-1)}, errdefs.IsResourceExhausted},
		"one size too much":        {[]specs.LinuxHugepageLimit{limit("2MB", 2<<20), limit("1GB", 5<<30)}, errdefs.IsResourceExhausted},
	} {
		p, pages := fakeKernel(t)
		if _, err := p.Reserve(tc.limits); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
		if small, large := pages("2048"), pages("1048576"); small != "0" || large != "1" {
			t.Errorf("%s: %s and %s pages are left", name, small, large)
		}
	}
}

func TestSizesAreThoseOfCgroups(t *testing.T) {
	for text, want := range map[string]uint64{"64KB": 64 << 10, "2MB": 2 << 20, "1GB": 1 << 30, "16GB": 16 << 30} {
		got, err := parseSize(text)
		if err != nil || got != want || name(got) != text {
			t.Errorf("%s is %d (%s), %v", text, got, name(got), err)
		}
	}
	for _, text := range []string{"", "MB", "0MB", "-2MB", "+2MB", "2M", "2", "2mb", "2 MB", "99999999999MB"} {
		if got, err := parseSize(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
}
