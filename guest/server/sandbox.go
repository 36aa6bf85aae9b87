package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/token"
)

// Sandbox is what the guest knows of its pod: nothing, until CreateSandbox.
type Sandbox struct {
	// Base is the directory below which files of the pod go.
	Base string
	// System is what its storages are mounted with.
	System storage.System

	mu      sync.Mutex
	created bool
	volumes map[string]*volume // by where they are mounted
}

// isHostname says that s is a name by RFC 1123, no longer than the kernel takes.
func isHostname(s string) bool {
	return token.Of(s, 1, 64, token.Class(token.Alnum).Or(".-")) && token.Alnum(s[0]) && token.Alnum(s[len(s)-1])
}

const (
	maxDNSLines = 64
	maxDNSLine  = 1024
)

func (a *agent) CreateSandbox(ctx context.Context, r *pb.CreateSandboxRequest) (*emptypb.Empty, error) {
	var u unsupported
	u.check("guest_hook_path", r.GetGuestHookPath() != "")
	u.check("kernel_modules", len(r.GetKernelModules()) > 0)
	if err := u.err(); err != nil {
		return nil, err
	}
	if id := r.GetSandboxId(); id != "" {
		if err := storage.CheckID(id); err != nil {
			return nil, err
		}
	}
	shared, err := a.sandbox.parseShared(r.GetStorages())
	if err != nil {
		return nil, err
	}
	if r.GetSandboxPidns() {
		if err := a.containers.SharePID(ctx); err != nil {
			return nil, err
		}
	}
	return empty, a.sandbox.create(ctx, r.GetHostname(), r.GetDns(), shared)
}

func (s *Sandbox) create(ctx context.Context, name string, dns []string, shared []storage.Shared) (err error) {
	resolv, err := resolvConf(dns)
	if err != nil {
		return err
	}
	if name != "" && !isHostname(name) {
		return fmt.Errorf("hostname %.80q: %w", name, errdefs.ErrInvalidArgument)
	}
	if !s.claim() {
		return fmt.Errorf("the sandbox: %w", errdefs.ErrAlreadyExists)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.unmount(ctx))
			s.release()
		}
	}()
	if name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set hostname %s: %w", name, err)
		}
	}
	if len(dns) > 0 {
		dir := filepath.Join(s.Base, "sandbox")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), resolv, 0o644); err != nil {
			return err
		}
	}
	return s.mount(ctx, shared)
}

// claim says that there is a sandbox, unless there is one.
func (s *Sandbox) claim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := s.created
	s.created = true
	return !had
}

func (s *Sandbox) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = false
}

// resolvConf joins the lines of a resolv.conf(5).
func resolvConf(lines []string) ([]byte, error) {
	if len(lines) > maxDNSLines {
		return nil, fmt.Errorf("%d lines of dns, at most %d: %w", len(lines), maxDNSLines, errdefs.ErrInvalidArgument)
	}
	for _, line := range lines {
		if len(line) > maxDNSLine || strings.ContainsAny(line, "\n\r\x00") {
			return nil, fmt.Errorf("line of dns %.80q: %w", line, errdefs.ErrInvalidArgument)
		}
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

func (a *agent) DestroySandbox(ctx context.Context, _ *pb.DestroySandboxRequest) (*emptypb.Empty, error) {
	if n := a.containers.Len(); n > 0 {
		return nil, fmt.Errorf("%d containers are left in the sandbox: %w", n, errdefs.ErrFailedPrecondition)
	}
	if err := a.sandbox.unmount(ctx); err != nil {
		return nil, err
	}
	a.sandbox.release()
	return empty, os.RemoveAll(filepath.Join(a.sandbox.Base, "sandbox"))
}

func (a *agent) SetGuestDateTime(_ context.Context, r *pb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	if r.GetUsec() < 0 || r.GetUsec() >= 1e6 {
		return nil, fmt.Errorf("%d microseconds: %w", r.GetUsec(), errdefs.ErrInvalidArgument)
	}
	if err := unix.Settimeofday(&unix.Timeval{Sec: r.GetSec(), Usec: r.GetUsec()}); err != nil {
		return nil, fmt.Errorf("set the clock: %w", err)
	}
	return empty, nil
}

// maxSeed is more than the kernel's pool of 256 bits can use.
const maxSeed = 512

// ReseedRandomDev credits what the host sends to the random number generator
// and makes it take effect at once (random(4)): before it, two guests of one
// template would draw the same numbers.
func (a *agent) ReseedRandomDev(_ context.Context, r *pb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	if n := len(r.GetData()); n == 0 || n > maxSeed {
		return nil, fmt.Errorf("a seed of %d bytes, want 1 to %d: %w", n, maxSeed, errdefs.ErrInvalidArgument)
	}
	return empty, reseed(r.GetData())
}

// reseed takes at most maxSeed bytes.
func reseed(seed []byte) error {
	random, err := os.OpenFile("/dev/random", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer random.Close()
	pool := struct { // struct rand_pool_info, include/uapi/linux/random.h
		bits, size int32
		buf        [maxSeed]byte
	}{bits: int32(len(seed) * 8), size: int32(len(seed))}
	copy(pool.buf[:], seed)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool))); e != 0 {
		return os.NewSyscallError("ioctl(RNDADDENTROPY)", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, random.Fd(), rndReseedCRNG, 0); e != 0 {
		return os.NewSyscallError("ioctl(RNDRESEEDCRNG)", e)
	}
	return nil
}

// rndReseedCRNG is RNDRESEEDCRNG, _IO('R', 7).
const rndReseedCRNG = 0x5207
