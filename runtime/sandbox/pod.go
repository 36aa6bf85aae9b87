package sandbox

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/runtime/guestspec"
)

// Annotations by which containerd's CRI plugin says what a container is to its
// pod (internal/cri/annotations of containerd).
const (
	kindKey       = "io.kubernetes.cri.container-type"
	kindSandbox   = "sandbox"
	kindContainer = "container"
	podKey        = "io.kubernetes.cri.sandbox-id"
)

// guestShm is the directory of the guest that the containers of a pod share as
// /dev/shm, where Kata has it.
const guestShm = guestRoot + "/sandbox/shm"

// pod is what the containers of a pod have in common. There is one if a pause
// container was created, which stands for it, or if the Sandbox API holds it.
// Nothing of it changes but api.
type pod struct {
	id      string
	sysctls map[string]string // of the guest
	mounts  []specs.Mount     // for containers that have none at these places
	api     *held             // nil if a container stands for the pod
}

// membership is what a container is to the pod of its sandbox.
type membership struct {
	pod   *pod // nil: the container has the VM for itself
	infra bool // the pod is made for it, and with it
	pid   int  // of the process that stands for the pod on the host; 0 for infra
}

// member says what a container is to the pod, by the annotations of its spec.
// A container without them that comes into a pod belongs to it.
func (s *Sandbox) member(id string, spec *specs.Spec) (membership, error) {
	kind, of := spec.Annotations[kindKey], spec.Annotations[podKey]
	s.mu.Lock()
	p, m := s.pod, s.machine
	s.mu.Unlock()
	switch {
	case p == nil && kind == kindSandbox:
		made := &pod{id: id}
		if spec.Linux != nil {
			made.sysctls = spec.Linux.Sysctl
		}
		return membership{pod: made, infra: true}, nil
	case p == nil && kind == kindContainer:
		return membership{}, fmt.Errorf("container %s is of pod %q, which this shim does not have: %w", id, of, errdefs.ErrFailedPrecondition)
	case p == nil:
		return membership{}, nil
	case kind == kindSandbox:
		return membership{}, fmt.Errorf("container %s stands for a pod, and the virtual machine is that of pod %s: %w", id, p.id, errdefs.ErrAlreadyExists)
	case of != "" && of != p.id:
		return membership{}, fmt.Errorf("container %s is of pod %q, and the virtual machine is that of pod %s: %w", id, of, p.id, errdefs.ErrInvalidArgument)
	}
	return membership{pod: p, pid: m.pid()}, nil
}

// guest is what guestspec has to know of it.
func (b membership) guest() *guestspec.Pod {
	if b.pod == nil {
		return nil
	}
	return &guestspec.Pod{Pid: b.pid, Infra: b.infra, Shm: guestShm}
}

// complete adds to the spec of a container what its pod has for it. What the spec
// says itself counts.
func (b membership) complete(spec *specs.Spec) {
	if b.pod == nil || b.infra || spec.Linux == nil {
		return
	}
	// They are the guest's. With the pause container's process they would be set
	// by that, which may not run.
	sysctls := maps.Clone(b.pod.sysctls)
	if sysctls == nil {
		sysctls = map[string]string{}
	}
	maps.Copy(sysctls, spec.Linux.Sysctl)
	spec.Linux.Sysctl = sysctls
	for _, m := range b.pod.mounts {
		if !slices.ContainsFunc(spec.Mounts, func(other specs.Mount) bool { return path.Clean(other.Destination) == m.Destination }) {
			if spec.Root != nil && spec.Root.Readonly {
				m.Options = append(slices.Clone(m.Options), "ro")
			}
			spec.Mounts = append(spec.Mounts, m)
		}
	}
}
