// Package shimtest runs the suites of github.com/containerd/shimtest against the
// built shim. It is a module of its own, so that what the suites depend on stays
// out of the tree's go.mod, and holds nothing but their list: test/conformance
// builds it, makes the place in which it runs, and judges what it prints.
package shimtest

import (
	"os"
	"strconv"
	"testing"

	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd/shimtest"
)

// TestMain registers the type of an exec's process, which a client of containerd
// does when it starts and the suites leave to their caller.
func TestMain(m *testing.M) {
	typeurl.Register(&specs.Process{}, "types.containerd.io", "opencontainers/runtime-spec", strconv.Itoa(specs.VersionMajor), "Process")
	os.Exit(m.Run())
}

// config hands the layers to the shim as they are, which is what it is for, unless
// SHIM_MOUNTED says that it is a shim that wants them mounted. SHIM_BINARY is the
// absolute path of the shim: by a bare name the suites cannot look for processes
// that were left.
func config(t testing.TB) shimtest.Config {
	t.Helper()
	binary := os.Getenv("SHIM_BINARY")
	if binary == "" {
		t.Fatal("SHIM_BINARY is not set: run make conformance")
	}
	return shimtest.Config{ShimBinary: binary, FormatMounts: os.Getenv("SHIM_MOUNTED") == "", Debug: true}
}

func TestRun(t *testing.T)      { shimtest.NewRunSuite(config(t)).Run(t) }
func TestExec(t *testing.T)     { shimtest.NewExecSuite(config(t)).Run(t) }
func TestTransfer(t *testing.T) { shimtest.NewTransferSuite(config(t)).Run(t) }
func TestUDS(t *testing.T)      { shimtest.NewUDSSuite(config(t)).Run(t) }
func TestOOM(t *testing.T)      { shimtest.NewOOMSuite(config(t)).Run(t) }
func TestLayers(t *testing.T)   { shimtest.NewLayersSuite(config(t)).Run(t) }
func TestNetwork(t *testing.T)  { shimtest.NewNetworkSuite(config(t)).Run(t) }

func TestStress(t *testing.T) {
	shimtest.NewStressSuite(config(t), shimtest.StressOptions{Transfer: true}).Run(t)
}

func FuzzTransferMissing(f *testing.F) { shimtest.NewTransferSuite(config(f)).Fuzz(f) }

// The benchmarks are those that a shim of any kind can run.
func BenchmarkRun(b *testing.B)  { shimtest.NewRunSuite(config(b)).Bench(b) }
func BenchmarkExec(b *testing.B) { shimtest.NewExecSuite(config(b)).Bench(b) }
