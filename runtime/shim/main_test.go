package shim

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// asShim makes this test binary the shim: `start` starts its own executable
// again to serve.
const asShim = "EROFSVM_TEST_AS_SHIM"

func TestMain(m *testing.M) {
	if os.Getenv(asShim) != "" {
		os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}
