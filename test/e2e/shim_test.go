package e2e

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	apitypes "github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// TestInfoClaimsTheMounts: -info answers without containerd, KVM or a guest,
// and carries the claim that containerd 2.2 and 2.3 read.
func TestInfoClaimsTheMounts(t *testing.T) {
	bed := e2etest.Newest(t)
	cmd := exec.Command(bed.Tree.Shim(), "-info")
	cmd.Stdin = bytes.NewReader(nil)
	cmd.Env = []string{"PATH=/nonexistent"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var info apitypes.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if info.GetName() != "io.containerd.erofsvm.v2" || info.GetVersion().GetVersion() == "" {
		t.Errorf("name %q, version %q", info.GetName(), info.GetVersion().GetVersion())
	}
	const key = "containerd.io/runtime-allow-mounts"
	if claim := info.GetAnnotations()[key]; claim != "mkdir/*,format/*,erofs" {
		t.Errorf("%s is %q", key, claim)
	}
	if info.GetFeatures() == nil {
		t.Error("no features: CRI would report none of the handler")
	}
}

func TestVersionIsPrinted(t *testing.T) {
	bed := e2etest.Newest(t)
	out, err := exec.Command(bed.Tree.Shim(), "-v").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ersion") {
		t.Errorf("%v\n%s", err, out)
	}
}
