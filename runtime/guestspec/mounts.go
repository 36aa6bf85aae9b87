package guestspec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Copy is a file or directory of the host of which the guest needs a copy, or
// which it needs to be shown (Options.Shares), before the container is created.
// What it is, nobody has looked at yet.
type Copy struct {
	Destination string // of the mount, in the container
	Source      string // absolute path on the host
	Guest       string // absolute path in the guest
	ReadOnly    bool   // the container cannot change it
	Recursive   bool   // what is mounted below the source belongs to it
	Receive     bool   // as does what is mounted there later
}

// Socket is a Unix socket of the host to which one of the guest is to lead, which
// is there before the container is created. What it is, nobody has looked at yet.
type Socket struct {
	Destination string // of the mount, in the container
	Source      string // absolute path on the host
	Name        string // of the guest's, below Options.Copies
}

// typeSocket is the type of such a mount. The OCI spec has none for it; shims of
// virtual machines do.
const typeSocket = "uds"

// hostless are the filesystems that a guest can mount by itself.
var hostless = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// kernels are directories of the host whose content is its kernel's. The guest
// has them from its own.
var kernels = []string{"/proc", "/sys", "/dev"}

// shm is the size and the flags that containerd gives a /dev/shm by default
// (pkg/oci/mounts.go).
var shm = []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}

func (r *Result) mounts(host *specs.Spec, o Options) ([]*pb.Mount, error) {
	var out []*pb.Mount
	sharedMemory := o.Pod.sharesIPC(host)
	for i, m := range host.Mounts {
		if !path.IsAbs(m.Destination) {
			return nil, invalid("mounts: destination %q is not absolute", m.Destination)
		}
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
			return nil, unsupported("mounts: %s: uidMappings and gidMappings need a user namespace, which the guest does not make", m.Destination)
		}
		switch {
		case sharedMemory && isSharedMemory(m):
			out = append(out, &pb.Mount{
				Destination: m.Destination, Source: o.Pod.Shm, Type: "bind", Options: []string{"rbind", "nosuid", "noexec", "nodev"},
			})
		case isBind(m):
			bound, err := r.bind(m, i, o)
			if err != nil {
				return nil, err
			}
			out = append(out, bound)
		case m.Type == typeSocket:
			socket, err := r.socket(m, i, o)
			if err != nil {
				return nil, err
			}
			out = append(out, socket)
		case slices.Contains(hostless, m.Type):
			out = append(out, &pb.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
		default:
			return nil, unsupported("mounts: %s: type %q of %q would be mounted from the host, which shares nothing with the guest: use a bind mount, whose files are copied",
				m.Destination, m.Type, m.Source)
		}
	}
	return out, nil
}

// isSharedMemory says whether a mount is the memory that the containers of a pod
// share: the host's directory that the CRI has made for it, or, where it has made
// none, the default of each container.
func isSharedMemory(m specs.Mount) bool {
	return path.Clean(m.Destination) == "/dev/shm" && (isBind(m) && !isVolume(m) || m.Type == "tmpfs")
}

// isVolume says whether a bind mount is one of a volume of Kubernetes, by where the
// kubelet keeps them (pkg/kubelet/kubelet_getters.go and pkg/volume/util/subpath).
// One at /dev/shm is meant to be that volume.
func isVolume(m specs.Mount) bool {
	return strings.Contains(m.Source, "/volumes/kubernetes.io~") || strings.Contains(m.Source, "/volume-subpaths/")
}

// socket makes a mount of a socket of the guest out of one of the host.
func (r *Result) socket(m specs.Mount, index int, o Options) (*pb.Mount, error) {
	if !path.IsAbs(m.Source) {
		return nil, invalid("mounts: %s: source %q of a socket is not absolute", m.Destination, m.Source)
	}
	s := Socket{Destination: m.Destination, Source: path.Clean(m.Source), Name: strconv.Itoa(index)}
	r.Sockets = append(r.Sockets, s)
	options := append([]string{"bind"}, m.Options...)
	return &pb.Mount{Destination: m.Destination, Source: path.Join(o.Copies, s.Name), Type: "bind", Options: options}, nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || m.Type != typeSocket && (slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"))
}

// binds is the directory of the guest that has the sources of bind mounts.
func (o Options) binds() string {
	if o.Shares != "" {
		return o.Shares
	}
	return o.Copies
}

// bind makes a mount of a file of the guest out of one of a file of the host.
func (r *Result) bind(m specs.Mount, index int, o Options) (*pb.Mount, error) {
	if m.Source == "" {
		return nil, invalid("mounts: %s: a bind mount without a source", m.Destination)
	}
	for _, option := range m.Options {
		if option == "idmap" || option == "ridmap" {
			return nil, unsupported("mounts: %s: option %q needs a user namespace, which the guest does not make", m.Destination, option)
		}
	}
	// Memory is the guest's, not a directory of the host.
	if path.Clean(m.Destination) == "/dev/shm" && !isVolume(m) {
		return &pb.Mount{Destination: m.Destination, Source: "shm", Type: "tmpfs", Options: slices.Clone(shm)}, nil
	}
	source := m.Source
	if !path.IsAbs(source) {
		source = path.Join(o.Bundle, source)
	}
	source = path.Clean(source)
	for _, dir := range kernels {
		if source == dir || strings.HasPrefix(source, dir+"/") {
			return nil, unsupported("mounts: %s: %s belongs to the host's kernel and cannot be seen from the guest, which has a %s of its own", m.Destination, source, dir)
		}
	}
	options := slices.Clone(m.Options)
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append(options, "rbind")
	}
	has := func(some ...string) bool {
		return slices.ContainsFunc(some, func(one string) bool { return slices.Contains(options, one) })
	}
	c := Copy{
		Destination: m.Destination, Source: source, Guest: path.Join(o.binds(), strconv.Itoa(index)),
		ReadOnly: has("ro", "rro"), Recursive: has("rbind"),
		Receive: has("shared", "rshared", "slave", "rslave"),
	}
	r.Copies = append(r.Copies, c)
	return &pb.Mount{Destination: m.Destination, Source: c.Guest, Type: "bind", Options: options}, nil
}
