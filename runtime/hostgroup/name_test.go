package hostgroup

import (
	"testing"

	"github.com/containerd/errdefs"
)

// TestNamesOfCgroups: both forms in which containerd's CRI plugin names the cgroup
// of a pod, by whether a kubelet's driver is cgroupfs or systemd.
func TestNamesOfCgroups(t *testing.T) {
	for text, want := range map[string]name{
		"/kubepods/burstable/pod1/abc": {path: "/kubepods/burstable/pod1/abc"},
		"/default/redis":               {path: "/default/redis"},
		"default/redis":                {path: "/default/redis"},
		"/a/../../b":                   {path: "/b"},
		"/with:two:colons":             {path: "/with:two:colons"},
		"kubepods-burstable-pod1_2.slice:cri-containerd:abc": {path: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope", slice: "kubepods-burstable-pod1_2.slice", unit: "cri-containerd-abc.scope"},
		"kubepods.slice::abc":                                {path: "/kubepods.slice/abc.scope", slice: "kubepods.slice", unit: "abc.scope"},
		":docker:abc":                                        {path: "/system.slice/docker-abc.scope", slice: "system.slice", unit: "docker-abc.scope"},
		"-.slice:cri-containerd:abc":                         {path: "/cri-containerd-abc.scope", slice: "-.slice", unit: "cri-containerd-abc.scope"},
	} {
		want.text = text
		if got, err := parse(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "/", "/..", "/a\n", "a\x00b",
		"kubepods:cri-containerd:abc", ".slice:a:b", "a--b.slice:a:b", "a.slice:b:", "a.slice:b:c.slice", "a/b.slice:c\x7f:d",
	} {
		if got, err := parse(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
