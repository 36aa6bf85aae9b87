package guestspec

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// shareable are the namespaces of a pod that its containers can have in common,
// besides the network.
var shareable = []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace}

// has says whether a namespace of a spec is the pod's: one that the container
// for which the pod was made has new, or one that another container names by the
// process that stands for the pod on the host.
func (p *Pod) has(ns specs.LinuxNamespace) bool {
	if p == nil || !slices.Contains(shareable, ns.Type) {
		return false
	}
	if p.Infra && ns.Path == "" {
		return true
	}
	return p.Pid > 0 && ns.Path == fmt.Sprintf("/proc/%d/ns/%s", p.Pid, ns.Type)
}

// namespaces keeps the new ones that separate containers inside the guest. The
// network is that of the VM, which is the pod's, as are ipc and uts where the
// containers of a pod have them in common.
//
// On a host with cgroups of version 1 nobody has a cgroup namespace, and runc shows a
// container its own cgroup in the place of the hierarchy. In the guest, whose cgroups
// are of version 2, that takes a namespace.
func (r *Result) namespaces(in []specs.LinuxNamespace, o Options) ([]*pb.LinuxNamespace, error) {
	var out []*pb.LinuxNamespace
	pod, ownCgroup := o.Pod, false
	for _, ns := range in {
		switch ns.Type {
		case specs.NetworkNamespace:
			continue
		case specs.UserNamespace, specs.TimeNamespace:
			return nil, unsupported("linux.namespaces: a %s namespace is not made in the guest: the virtual machine is the boundary", ns.Type)
		case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace:
		default:
			return nil, invalid("linux.namespaces: unknown type %q", ns.Type)
		}
		ownCgroup = ownCgroup || ns.Type == specs.CgroupNamespace
		switch {
		case pod.has(ns):
			r.PodPID = r.PodPID || ns.Type == specs.PIDNamespace
		case ns.Path != "":
			return nil, unsupported("linux.namespaces: the %s namespace %s is one of the host and cannot be joined from a virtual machine: leave it out (--with-ns of ctr)",
				ns.Type, ns.Path)
		default:
			out = append(out, &pb.LinuxNamespace{Type: string(ns.Type)})
		}
	}
	if o.CgroupV1 && !ownCgroup {
		out = append(out, &pb.LinuxNamespace{Type: string(specs.CgroupNamespace)})
	}
	return out, nil
}

// hostname is the name that the container gives itself. In the pod's uts
// namespace the pod's name stands, which is that of its first container.
func (r *Result) hostname(host *specs.Spec, pod *Pod) string {
	if pod != nil && pod.Infra {
		return "" // also where the CRI leaves it the uts namespace of the host
	}
	if host.Hostname == "" || !slices.ContainsFunc(host.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.UTSNamespace && pod.has(ns)
	}) {
		return host.Hostname
	}
	r.drop("hostname", "the container shares the name of its pod")
	return ""
}

// sharesIPC says whether a container has the ipc namespace of its pod, and with
// it the pod's /dev/shm.
func (p *Pod) sharesIPC(host *specs.Spec) bool {
	return slices.ContainsFunc(host.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.IPCNamespace && p.has(ns)
	})
}
