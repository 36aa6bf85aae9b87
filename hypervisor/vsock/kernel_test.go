package vsock

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestClaimCIDTriesAnotherWhenOneIsTaken(t *testing.T) {
	var tried []uint64
	cid, err := claimCID(func(cid uint64) error {
		tried = append(tried, cid)
		if len(tried) < 4 {
			return unix.EADDRINUSE
		}
		return nil
	})
	if err != nil || len(tried) != 4 || uint64(cid) != tried[3] {
		t.Errorf("got %d, %v after trying %v", cid, err, tried)
	}
	for _, c := range tried {
		if c < firstCID || c >= unix.VMADDR_CID_ANY {
			t.Errorf("tried %d, which is reserved", c)
		}
	}
}

func TestClaimCIDEnds(t *testing.T) {
	if _, err := claimCID(func(uint64) error { return unix.EADDRINUSE }); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("all taken: %v", err)
	}
	calls := 0
	if _, err := claimCID(func(uint64) error { calls++; return unix.EPERM }); !errors.Is(err, unix.EPERM) || calls != 1 {
		t.Errorf("refused: %v after %d calls", err, calls)
	}
}

func TestNotYetIsWhatABootingGuestAnswers(t *testing.T) {
	for _, err := range []error{unix.ECONNRESET, unix.ETIMEDOUT, unix.ENODEV} {
		if !notYet(fmt.Errorf("dial: %w", os.NewSyscallError("connect", err))) {
			t.Errorf("%v ends the wait", err)
		}
	}
	for _, err := range []error{unix.EPERM, unix.EAFNOSUPPORT, errors.New("other")} {
		if notYet(err) {
			t.Errorf("%v is waited out", err)
		}
	}
}

func TestKernelDeviceIsMissing(t *testing.T) {
	if _, err := os.Stat(devicePath); err == nil {
		t.Skip(devicePath + " exists")
	}
	_, err := Open(t.Context(), Config{Kind: Kernel})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
}
