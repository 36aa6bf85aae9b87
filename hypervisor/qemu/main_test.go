package qemu_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// sharedDir holds what is built once for all tests.
var sharedDir string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if sharedDir, err = os.MkdirTemp("", "qemu-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(sharedDir)
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
