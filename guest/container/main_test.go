package container

import (
	"testing"

	"go.uber.org/goleak"
)

// What needs a cgroup v2 and a root directory of its own, and so a machine of
// its own, is tried in a VM by the tests of cmd/erofsvm-agent.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
