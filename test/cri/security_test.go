package cri

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// ids prints what a process is to the kernel, first the container's own and then
// that of the exec.
const ids = "for p in 1 self; do awk '/^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs|Seccomp):/ {print $1 $2, $3}' /proc/$p/status; awk '/^Groups:/ {$1=\"all\"; print}' /proc/$p/status; done"

// secured is a container with a security context.
type secured struct {
	name   string
	change func(*cri.LinuxContainerSecurityContext)
	has    []string          // lines that ids prints twice
	says   map[string]string // by script
}

// bind is CAP_NET_BIND_SERVICE, number 10, alone.
const bind = "0000000000000400"

func contexts(localhost string) []secured {
	return []secured{
		{"user", func(s *cri.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 2000}
			s.SupplementalGroups, s.NoNewPrivs = []int64{3000, 4000}, true
			s.ReadonlyRootfs = true
		}, []string{"Uid:1000 1000", "Gid:2000 2000", "all 2000 3000 4000", "CapEff:0000000000000000 ", "NoNewPrivs:1 "}, map[string]string{
			"id -u; id -g; touch /x 2> /dev/null || echo read-only; touch /dev/shm/x && echo shm": "1000\n2000\nread-only\nshm\n",
		}},
		{"drop", func(s *cri.LinuxContainerSecurityContext) {
			s.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/timer_list", "/proc/scsi"}, []string{"/proc/sys"}
		}, []string{"Uid:0 0", "CapEff:" + bind + " ", "CapBnd:" + bind + " ", "NoNewPrivs:0 ", "Seccomp:2 "}, map[string]string{
			"chown 1 /tmp 2> /dev/null || echo refused":                                                 "refused\n",
			"unshare -U true 2> /dev/null || echo refused":                                              "refused\n",
			"wc -c < /proc/timer_list; echo 1 2> /dev/null > /proc/sys/vm/swappiness || echo read-only": "0\nread-only\n",
		}},
		{"localhost", func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: localhost}
		}, []string{"Seccomp:2 "}, map[string]string{
			"mkdir /tmp/x 2> /dev/null || echo refused; touch /tmp/y && echo made": "refused\nmade\n",
		}},
		{"unmasked", func(s *cri.LinuxContainerSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
		}, []string{"Seccomp:0 "}, map[string]string{
			"unshare -U true && echo unshared; cat /proc/timer_list | head -n 1 | wc -l": "unshared\n1\n",
			"echo 77 > /proc/sys/vm/swappiness && cat /proc/sys/vm/swappiness":           "77\n",
		}},
		{"privileged", func(s *cri.LinuxContainerSecurityContext) {
			s.Privileged = true
		}, []string{"Uid:0 0", "Seccomp:0 "}, map[string]string{
			"mount -t tmpfs none /tmp && touch /tmp/x && echo mounted":                                                       "mounted\n",
			"test $(awk '/CapEff/ {print $2}' /proc/self/status) = $(awk '/CapBnd/ {print $2}' /proc/1/status) && echo all":  "all\n",
			"echo 78 > /proc/sys/vm/swappiness && cat /proc/sys/vm/swappiness":                                               "78\n",
			"touch /sys/fs/cgroup/x 2> /dev/null; mkdir /sys/fs/cgroup/below && rmdir /sys/fs/cgroup/below && echo writable": "writable\n",
		}},
	}
}

// denyMkdir is a seccomp profile of an administrator's.
const denyMkdir = `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`

// testSecurity is a pod with a container for each part of a security context. What
// they may, they may in the guest.
func testSecurity(t *testing.T, r *runtime, handler string) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(denyMkdir), 0o644))
	swappiness, err := os.ReadFile("/proc/sys/vm/swappiness")
	must(t, err)
	ports, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	must(t, err)
	p := r.pod(t, handler, func(c *cri.PodSandboxConfig) {
		c.Linux.Sysctls["net.ipv4.ip_local_port_range"] = "20000 20999"
		c.Linux.SecurityContext.Privileged = true // one of its containers is
	})
	for _, s := range contexts(profile) {
		c := p.start(t, spec{name: s.name, image: image.One, script: forever, pid: cri.NamespaceMode_CONTAINER, change: func(c *cri.ContainerConfig) {
			s.change(c.Linux.SecurityContext)
		}})
		is := strings.Split(c.sh(t, ids), "\n")
		for _, line := range s.has {
			if n := len(slices.DeleteFunc(slices.Clone(is), func(l string) bool { return l != line })); n != 2 {
				t.Errorf("%s: %q %d times in %q", s.name, line, n, is)
			}
		}
		says(t, c, s.says)
		says(t, c, map[string]string{"cat /proc/sys/net/ipv4/ip_local_port_range": "20000\t20999\n"})
		if s.name == "privileged" {
			c.noDevicesOfTheHost(t)
		}
		_, err := c.StopContainer(step(t), &cri.StopContainerRequest{ContainerId: c.id})
		must(t, err)
	}
	for file, was := range map[string][]byte{"/proc/sys/vm/swappiness": swappiness, "/proc/sys/net/ipv4/ip_local_port_range": ports} {
		if is, err := os.ReadFile(file); err != nil || string(is) != string(was) {
			t.Errorf("%s of the host is %q, was %q, %v", file, is, was, err)
		}
	}
	p.remove(t)
}

// noDevicesOfTheHost holds that each device of a container is one that its guest's
// kernel has.
func (c *container) noDevicesOfTheHost(t *testing.T) {
	t.Helper()
	out := c.sh(t, `for d in $(find /dev -type b -o -type c); do
		n=$(stat -c '%t:%T' $d); n=$((0x${n%:*})):$((0x${n#*:}))
		test -e /sys/dev/block/$n -o -e /sys/dev/char/$n || echo $d $n; done | grep -v '^/dev/\(pts/\|console\)' || true`)
	if out != "" {
		t.Errorf("devices without a driver in the guest: %s", out)
	}
}

// testRefusals are pods that a virtual machine cannot be. The error is what the
// kubelet puts into the pod's event.
func testRefusals(t *testing.T, r *runtime, handler string) {
	for what, tc := range map[string]struct {
		change func(*cri.NamespaceOption)
		says   []string
	}{
		"host-network": {func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_NODE }, []string{"hostNetwork", "network.host"}},
		"user-namespace": {func(o *cri.NamespaceOption) {
			ids := []*cri.IDMapping{{HostId: 100000, ContainerId: 0, Length: 65536}}
			o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
		}, []string{"user namespace", "not"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), e2etest.Step)
		resp, err := r.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: handler, Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "refused", Namespace: "tests", Uid: "refused-" + what},
			Linux:    r.refused(t, what, tc.change),
		}})
		cancel()
		if err == nil {
			t.Errorf("%s: there is a pod %s", what, resp.GetPodSandboxId())
			continue
		}
		for _, text := range tc.says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q is not in: %v", what, text, err)
			}
		}
	}
	s, err := r.Status(step(t), &cri.StatusRequest{})
	must(t, err)
	for _, h := range s.GetRuntimeHandlers() {
		if h.GetName() == handler && (h.GetFeatures().GetUserNamespaces() || !h.GetFeatures().GetRecursiveReadOnlyMounts()) {
			t.Errorf("a kubelet is promised %v", h.GetFeatures())
		}
	}
}

func (r *runtime) refused(t *testing.T, uid string, change func(*cri.NamespaceOption)) *cri.LinuxPodSandboxConfig {
	t.Helper()
	options := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER}
	change(options)
	return &cri.LinuxPodSandboxConfig{
		CgroupParent:    r.podGroup(t, "refused-"+uid).Path,
		SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options},
	}
}
