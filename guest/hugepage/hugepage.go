// Package hugepage reserves huge pages of the guest's kernel, as many as the limits of
// its containers allow. On a host an administrator reserves them for all pods; in a
// guest there are none before a container comes that may use some.
//
// What is reserved lies idle until a container maps it, by a file of a hugetlbfs or
// without one, and is taken from the memory of everybody else
// (Documentation/admin-guide/mm/hugetlbpage.rst of the kernel). No goroutine is started.
package hugepage

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Dir is where the kernel has its sizes of huge pages, one directory for each.
const Dir = "/sys/kernel/mm/hugepages"

// Pool are the huge pages of the kernel. Its methods may be called from any goroutine.
type Pool struct {
	dir    string
	memory func() (uint64, error) // bytes that the guest has in all

	mu    sync.Mutex
	sizes map[uint64]*size // by bytes of a page
}

// size are the pages of one size.
type size struct {
	before, reserved uint64 // pages: those that others have asked for, and ours
}

// New returns the pool of the kernel whose sizes are in dir.
func New(dir string) *Pool {
	return &Pool{dir: dir, memory: totalMemory, sizes: map[uint64]*size{}}
}

func totalMemory() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, os.NewSyscallError("sysinfo", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}

// Reservation is what one container may use. The zero value is none.
type Reservation struct {
	pool  *Pool
	pages map[uint64]uint64 // by size in bytes
}

// Reserve reserves what the limits allow, all of it or nothing. What does not fit into
// the guest's memory is errdefs.ErrResourceExhausted, a size that the kernel does not
// have errdefs.ErrInvalidArgument. A limit of 0 reserves nothing.
func (p *Pool) Reserve(limits []specs.LinuxHugepageLimit) (Reservation, error) {
	want := map[uint64]uint64{}
	for _, l := range limits {
		if l.Limit == 0 {
			continue
		}
		bytes, err := parseSize(l.Pagesize)
		if err != nil {
			return Reservation{}, err
		}
		pages := l.Limit / bytes
		if l.Limit%bytes != 0 {
			pages++
		}
		want[bytes] = pages
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	done := Reservation{pool: p, pages: map[uint64]uint64{}}
	for _, bytes := range slices.Sorted(maps.Keys(want)) {
		if err := p.add(bytes, want[bytes]); err != nil {
			return Reservation{}, errors.Join(err, done.release())
		}
		done.pages[bytes] = want[bytes]
	}
	return done, nil
}

// Release gives back what was reserved; again, it does nothing. Pages that are in use,
// by a file that is left in a volume, go when that does.
func (r *Reservation) Release() error {
	if r.pool == nil {
		return nil
	}
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.release()
}

func (r *Reservation) release() error {
	var errs []error
	for _, bytes := range slices.Sorted(maps.Keys(r.pages)) {
		s := r.pool.sizes[bytes]
		s.reserved -= r.pages[bytes]
		errs = append(errs, r.pool.write(bytes, s.before+s.reserved))
	}
	r.pages = nil
	return errors.Join(errs...)
}

// add reserves more pages of a size. The pool is locked.
func (p *Pool) add(bytes, pages uint64) error {
	s := p.sizes[bytes]
	if s == nil {
		before, err := p.read(bytes)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("huge pages of %s: the guest's kernel has no such: %w", name(bytes), errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return err
		}
		s = &size{before: before}
		p.sizes[bytes] = s
	}
	// The kernel tries as long as it finds a page, until nothing is left to run with.
	memory, err := p.memory()
	if err != nil {
		return err
	}
	if over, asked := bits.Mul64(pages, bytes); over > 0 || asked >= memory {
		return noRoom(bytes, pages, fmt.Sprintf("it has %d MiB in all", memory>>20))
	}
	want := s.before + s.reserved + pages
	if err := p.write(bytes, want); err != nil {
		return err
	}
	got, err := p.read(bytes)
	if err == nil && got < want {
		err = noRoom(bytes, pages, fmt.Sprintf("there is room for %d of them", got-min(got, s.before+s.reserved)))
	}
	if err != nil {
		return errors.Join(err, p.write(bytes, s.before+s.reserved))
	}
	s.reserved += pages
	return nil
}

func noRoom(bytes, pages uint64, why string) error {
	return fmt.Errorf("the container's limit of huge pages is %d of %s, for which the guest's memory is too small or in too many pieces: %s; let the virtual machine become larger (hypervisor.max_memory_mib), or begin larger (hypervisor.memory_mib): %w",
		pages, name(bytes), why, errdefs.ErrResourceExhausted)
}

func (p *Pool) file(bytes uint64) string {
	return filepath.Join(p.dir, fmt.Sprintf("hugepages-%dkB", bytes>>10), "nr_hugepages")
}

func (p *Pool) read(bytes uint64) (uint64, error) {
	text, err := os.ReadFile(p.file(bytes))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", p.file(bytes), err)
	}
	return pages, nil
}

func (p *Pool) write(bytes, pages uint64) error {
	return os.WriteFile(p.file(bytes), []byte(strconv.FormatUint(pages, 10)), 0)
}

// units are those of the hugetlb cgroup's files, and so of OCI specs (runtime-spec,
// config-linux.md, "Huge page limits").
var units = []struct {
	name  string
	shift uint
}{{"KB", 10}, {"MB", 20}, {"GB", 30}}

// parseSize reads the size of a page, such as 2MB.
func parseSize(text string) (uint64, error) {
	for _, u := range units {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err == nil && n > 0 && digits[0] != '+' {
			return n << u.shift, nil
		}
	}
	return 0, fmt.Errorf("size of huge pages %.32q, want such as 2MB: %w", text, errdefs.ErrInvalidArgument)
}

func name(bytes uint64) string {
	for _, u := range slices.Backward(units) {
		if bytes>>u.shift > 0 {
			return strconv.FormatUint(bytes>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(bytes, 10)
}
