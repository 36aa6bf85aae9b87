package e2e

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/cni"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
)

// withCNI runs what follows on its command line with CNI where ctr looks for it, in
// files that nobody else sees: a network list and the folder of the plugins come first.
const withCNI = `set -e
list=$1 plugins=$2
shift 2
mount -t tmpfs none /opt
mkdir -p /opt/cni /opt/etc/upper /opt/etc/work
ln -s "$plugins" /opt/cni/bin
mount -t overlay none -o lowerdir=/etc,upperdir=/opt/etc/upper,workdir=/opt/etc/work /etc
mkdir -p /etc/cni/net.d
cp "$list" /etc/cni/net.d/10-test.conflist
exec "$@"`

// TestCtrRunCNI: the command itself, whose network comes between the creation of a
// container and its start.
func TestCtrRunCNI(t *testing.T) {
	bed := e2etest.Newest(t)
	node := newNode(t, bed)
	text, err := node.List(cni.Network{Bridge: "pods", MTU: 1450, Default: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.5.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Boot)
	defer cancel()
	ctr := bed.Ctr(ctx, "run", "--rm", "--cni", "--runtime", harness.Runtime, "--runtime-config-path", bed.ShimConfigPath(),
		"--snapshotter", harness.Snapshotter, bed.Image(t, "one", harness.Snapshotter), "ctr-cni",
		"sh", "-c", "ip -4 addr show eth0; ip route; busybox ping -c 1 -W 10 10.88.5.1")
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", withCNI, "sh", list, node.Plugins(), ctr.Path}, ctr.Args[1:]...)...)
	cmd.Env, cmd.SysProcAttr, cmd.WaitDelay = ctr.Env, ctr.SysProcAttr, ctr.WaitDelay
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := node.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ctr: %v", err)
	}
	for _, want := range []string{"inet 10.88.5.", "mtu 1450", "default via 10.88.5.1", "1 packets received"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q in:\n%s", want, said.String())
		}
	}
}
