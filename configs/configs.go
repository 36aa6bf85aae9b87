// Package configs holds the configuration of erofsvm: its keys, their defaults,
// where the file is looked for, and what is refused in it.
//
// The package owns configuration.toml, which is embedded as the source of the
// defaults. A Config is plain data, may be copied, and is never changed after
// it was loaded; every function may be called from any goroutine. The package
// starts nothing and looks at no file but the configuration itself: whether a
// kernel exists is for those to say who open it.
package configs

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is the file that is read if containerd's options name none.
const DefaultPath = "/etc/erofsvm/configuration.toml"

// maxSize bounds a configuration, in bytes; ConfigBody comes over an RPC.
const maxSize = 1 << 20

// Bounds that others check values against before they are a configuration's.
const (
	MinMemoryMiB = 128 // less does not boot
	MaxSlots     = 512
)

//go:embed configuration.toml
var defaults []byte

// ErrInvalid is wrapped by every error about the content of a configuration.
var ErrInvalid = errors.New("invalid configuration")

// Config is the whole configuration. The comments of configuration.toml say
// what each key means.
type Config struct {
	StateDir    string      `toml:"state_dir"`
	CacheDir    string      `toml:"cache_dir"`
	Hypervisor  Hypervisor  `toml:"hypervisor"`
	Guest       Guest       `toml:"guest"`
	Vsock       Vsock       `toml:"vsock"`
	Network     Network     `toml:"network"`
	Rootfs      Rootfs      `toml:"rootfs"`
	Mounts      Mounts      `toml:"mounts"`
	Host        Host        `toml:"host"`
	Annotations Annotations `toml:"annotations"`
	Deadlines   Deadlines   `toml:"deadlines"`
	Log         Log         `toml:"log"`
	Debug       Debug       `toml:"debug"`
}

// Hypervisor configures QEMU.
type Hypervisor struct {
	Path         string `toml:"path"`
	Machine      string `toml:"machine"`
	Accelerator  string `toml:"accelerator"`
	VCPUs        int    `toml:"vcpus"`
	MemoryMiB    int    `toml:"memory_mib"`
	MaxVCPUs     int    `toml:"max_vcpus"`
	MaxMemoryMiB int    `toml:"max_memory_mib"`
	Reclaim      bool   `toml:"reclaim_guest_freed_memory"`
	Slots        int    `toml:"slots"`
	BlockDriver  string `toml:"block_driver"`
	AIO          string `toml:"aio"`
	Cache        string `toml:"cache"`
	IOThreads    int    `toml:"iothreads"`
	Templates    string `toml:"templates"`
	TemplatesMiB int    `toml:"templates_mib"`
	Starts       int    `toml:"starts"`
}

// Guest names the guest image.
type Guest struct {
	Kernel       string `toml:"kernel"`
	Initrd       string `toml:"initrd"`
	KernelParams string `toml:"kernel_params"`
	Hooks        string `toml:"hooks"`
	Pause        string `toml:"pause"`
}

// Vsock chooses the transport between shim and agent.
type Vsock struct {
	Backend    string `toml:"backend"`
	DevicePath string `toml:"device_path"`
}

// Network configures how a pod's network gets into the guest.
type Network struct {
	Model    string `toml:"model"`
	Host     string `toml:"host"`
	Queues   int    `toml:"queues"`
	VhostNet bool   `toml:"vhost_net"`
}

// CacheNone is the value of Hypervisor.Cache that keeps disks out of the host's page
// cache.
const CacheNone = "none"

// MaxStarts is as good as no limit to how many virtual machines start at once.
const MaxStarts = 1000

// MaxIOThreads is more than a virtual machine has use for.
const MaxIOThreads = 16

// The values of Network.Host.
const (
	HostNetworkRefuse   = "refuse"
	HostNetworkLoopback = "loopback"
)

// Rootfs configures how layers become disks.
type Rootfs struct {
	MkfsErofs      string `toml:"mkfs_erofs"`
	MkfsExt4       string `toml:"mkfs_ext4"`
	Layers         string `toml:"layers"`
	CacheMiB       int    `toml:"cache_mib"`
	MemoryUpperMiB int    `toml:"memory_upper_mib"`
	Discard        bool   `toml:"discard"`
}

// Mounts configures what becomes of bind mounts.
type Mounts struct {
	Bind        string `toml:"bind"`
	CopyMiB     int    `toml:"copy_mib"`
	CopyFiles   int    `toml:"copy_files"`
	Virtiofsd   string `toml:"virtiofsd"`
	EmptyDir    string `toml:"empty_dir"`
	EmptyDirMiB int    `toml:"empty_dir_mib"`
}

// BindVirtioFS is the value of Mounts.Bind that has guests see the host's files.
const BindVirtioFS = "virtiofs"

// TemplatesOn is the value of Hypervisor.Templates that has VMs go on from saved ones.
const TemplatesOn = "on"

// EmptyDirGuest is the value of Mounts.EmptyDir that has emptyDirs live in the guest.
const EmptyDirGuest = "guest"

// Host configures what a VM is to its host.
type Host struct {
	Cgroup string `toml:"cgroup"`
}

// The values of Host.Cgroup.
const (
	CgroupPod     = "pod"
	CgroupInherit = "inherit"
)

// Annotations configures what a pod may say about its own VM.
type Annotations struct {
	// Allowed are patterns for names, as path.Match reads them. Nobody changes
	// the slice.
	Allowed []string `toml:"allowed"`
}

// Deadlines bound every wait.
type Deadlines struct {
	QEMU     Duration `toml:"qemu"`
	Agent    Duration `toml:"agent"`
	Template Duration `toml:"template"`
	Plug     Duration `toml:"plug"`
	Call     Duration `toml:"call"`
	Plan     Duration `toml:"plan"`
	Create   Duration `toml:"create"`
	Unplug   Duration `toml:"unplug"`
	Stop     Duration `toml:"stop"`
	Drain    Duration `toml:"drain"`
	Hook     Duration `toml:"hook"`
}

// Log configures the shim's log.
type Log struct {
	Level string `toml:"level"`
}

// Debug is for people who look into a sandbox.
type Debug struct {
	TraceDir   string `toml:"trace_dir"`
	PlainPaths bool   `toml:"plain_paths"`
}

// Duration is a time.Duration written as "30s" in the file.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"30s\"", text)
	}
	*d = Duration(v)
	return nil
}

// Default returns the configuration that an empty file stands for.
func Default() Config {
	var c Config
	if err := decode(defaults, &c); err != nil {
		panic(fmt.Sprintf("embedded configuration.toml: %v", err)) // a build that TestDefaultsAreValid rejects
	}
	return c
}

// Defaults is the file that has every key with its default and a comment.
func Defaults() []byte { return bytes.Clone(defaults) }

// Load reads the file at path over the defaults. With an empty path it reads
// DefaultPath, and returns the defaults if that does not exist.
func Load(path string) (Config, error) {
	explicit := path != ""
	if !explicit {
		path = DefaultPath
	}
	data, err := readBounded(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit:
		return Default(), nil
	case err != nil:
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads the text of a configuration over the defaults. name is what
// errors call it.
func Parse(name string, data []byte) (Config, error) {
	c := Default()
	if len(data) > maxSize {
		return Config{}, fmt.Errorf("%w: %s: longer than %d bytes", ErrInvalid, name, maxSize)
	}
	if err := decode(data, &c); err != nil {
		return Config{}, fmt.Errorf("%w: %s:%w", ErrInvalid, name, err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return c, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxSize)
	}
	return os.ReadFile(path)
}

// decode reports errors as "line:column: text", to stand behind "name:".
func decode(data []byte, c *Config) error {
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	err := dec.Decode(c)
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var all []error
		for _, e := range strict.Errors {
			line, col := e.Position()
			all = append(all, fmt.Errorf("%d:%d: unknown key %q", line, col, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	if de, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, col := de.Position()
		return fmt.Errorf("%d:%d: %w", line, col, err)
	}
	return err
}

// Validate checks what can be checked without looking at the host. What Parse
// returned is valid; the error names each key whose value is not.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(key, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	between := func(key string, value, low, high int) {
		if value < low || value > high {
			bad(key, "%d is not between %d and %d", value, low, high)
		}
	}
	// A comma would start another suboption on QEMU's command line, a newline
	// another extent in a descriptor.
	file := func(key, value string, absolute bool) {
		switch {
		case value == "":
			bad(key, "is empty")
		case strings.ContainsAny(value, ",\"\n\r\x00"):
			bad(key, "%q contains a comma, a quote or a control character", value)
		case absolute && !filepath.IsAbs(value):
			bad(key, "%q is not an absolute path", value)
		}
	}

	file("state_dir", c.StateDir, true)
	file("cache_dir", c.CacheDir, true)
	file("hypervisor.path", c.Hypervisor.Path, false)
	oneOf("hypervisor.machine", c.Hypervisor.Machine, "q35")
	oneOf("hypervisor.accelerator", c.Hypervisor.Accelerator, "auto", "kvm", "tcg")
	between("hypervisor.vcpus", c.Hypervisor.VCPUs, 1, 255)
	between("hypervisor.memory_mib", c.Hypervisor.MemoryMiB, MinMemoryMiB, 1<<20)
	if c.Hypervisor.MaxVCPUs != 0 {
		between("hypervisor.max_vcpus", c.Hypervisor.MaxVCPUs, c.Hypervisor.VCPUs, 255)
	}
	if c.Hypervisor.MaxMemoryMiB != 0 {
		between("hypervisor.max_memory_mib", c.Hypervisor.MaxMemoryMiB, c.Hypervisor.MemoryMiB, 1<<20)
	}
	between("hypervisor.slots", c.Hypervisor.Slots, 2, MaxSlots)
	oneOf("hypervisor.block_driver", c.Hypervisor.BlockDriver, "virtio-blk", "virtio-scsi")
	oneOf("hypervisor.aio", c.Hypervisor.AIO, "threads", "io_uring", "native")
	oneOf("hypervisor.cache", c.Hypervisor.Cache, "writeback", CacheNone)
	if c.Hypervisor.AIO == "native" && c.Hypervisor.Cache != CacheNone {
		bad("hypervisor.aio", "%q needs hypervisor.cache = %q: the kernel has it for O_DIRECT alone", c.Hypervisor.AIO, CacheNone)
	}
	between("hypervisor.iothreads", c.Hypervisor.IOThreads, 0, MaxIOThreads)
	oneOf("hypervisor.templates", c.Hypervisor.Templates, "off", TemplatesOn)
	between("hypervisor.templates_mib", c.Hypervisor.TemplatesMiB, 1, 1<<20)
	between("hypervisor.starts", c.Hypervisor.Starts, 0, MaxStarts)
	file("guest.kernel", c.Guest.Kernel, true)
	file("guest.initrd", c.Guest.Initrd, true)
	if strings.ContainsAny(c.Guest.KernelParams, "\n\r\x00") {
		bad("guest.kernel_params", "contains a control character")
	}
	oneOf("guest.hooks", c.Guest.Hooks, "refuse", "pass")
	oneOf("guest.pause", c.Guest.Pause, "virtual", "run")
	oneOf("vsock.backend", c.Vsock.Backend, "auto", "kernel", "vhost-user")
	file("vsock.device_path", c.Vsock.DevicePath, false)
	oneOf("network.model", c.Network.Model, "tap", "macvtap", "none")
	oneOf("network.host", c.Network.Host, HostNetworkRefuse, HostNetworkLoopback)
	between("network.queues", c.Network.Queues, 0, 32)
	file("rootfs.mkfs_erofs", c.Rootfs.MkfsErofs, false)
	file("rootfs.mkfs_ext4", c.Rootfs.MkfsExt4, false)
	oneOf("rootfs.layers", c.Rootfs.Layers, "auto", "merge", "partition")
	between("rootfs.cache_mib", c.Rootfs.CacheMiB, 1, 1<<20)
	between("rootfs.memory_upper_mib", c.Rootfs.MemoryUpperMiB, 0, 1<<20)
	oneOf("mounts.bind", c.Mounts.Bind, "copy", BindVirtioFS)
	file("mounts.virtiofsd", c.Mounts.Virtiofsd, false)
	between("mounts.copy_mib", c.Mounts.CopyMiB, 0, 1<<20)
	between("mounts.copy_files", c.Mounts.CopyFiles, 0, 1<<20)
	oneOf("mounts.empty_dir", c.Mounts.EmptyDir, EmptyDirGuest, "bind")
	between("mounts.empty_dir_mib", c.Mounts.EmptyDirMiB, 64, 1<<20)
	oneOf("host.cgroup", c.Host.Cgroup, CgroupPod, CgroupInherit)
	for _, pattern := range c.Annotations.Allowed {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			bad("annotations.allowed", "%q is no pattern such as \"io.erofsvm.hypervisor.*\"", pattern)
		}
	}
	for key, d := range map[string]Duration{
		"qemu": c.Deadlines.QEMU, "agent": c.Deadlines.Agent, "template": c.Deadlines.Template, "plug": c.Deadlines.Plug,
		"call": c.Deadlines.Call, "plan": c.Deadlines.Plan, "create": c.Deadlines.Create,
		"unplug": c.Deadlines.Unplug, "stop": c.Deadlines.Stop, "drain": c.Deadlines.Drain,
		"hook": c.Deadlines.Hook,
	} {
		if d <= 0 {
			bad("deadlines."+key, "must be more than 0")
		}
	}
	oneOf("log.level", c.Log.Level, "error", "warn", "info", "debug", "trace")
	if c.Debug.TraceDir != "" {
		file("debug.trace_dir", c.Debug.TraceDir, true)
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
