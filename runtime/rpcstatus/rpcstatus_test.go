package rpcstatus

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func TestErrorsReachContainerdWithClassAndTextOnce(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("attach %s: %w", "x", errdefs.ErrNotFound),
		fmt.Errorf("%w: %w: read", errdefs.ErrInvalidArgument, fs.ErrNotExist),
		fmt.Errorf("a: %w", errors.Join(fs.ErrNotExist, errdefs.ErrUnavailable)),
		errors.New("of no class"),
	} {
		got := errgrpc.ToNative(Of(err))
		if got.Error() != err.Error() {
			t.Errorf("text %q, want %q", got, err)
		}
		for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrUnavailable} {
			if errors.Is(got, class) != errors.Is(err, class) {
				t.Errorf("%q: class %v is %v", err, class, errors.Is(got, class))
			}
		}
	}
	if Of(nil) != nil {
		t.Error("nil became an error")
	}
}
