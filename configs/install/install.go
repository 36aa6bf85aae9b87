// Package install puts the runtime on a host and takes it away again: programs,
// guest image, configuration, and the file by which containerd learns of it.
//
// It owns the files that its manifest names, and no other: what somebody else wrote
// or changed is not overwritten and not removed, unless that is asked for. A file
// of containerd's configuration that is there is never changed. Everything is
// checked before anything is written; a file is replaced whole, by renaming; and
// what was interrupted is finished by the next run. One Installer is for one
// goroutine; of two that work on one host, also in two processes, the second fails.
package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// Where things go, on the host.
const (
	DefaultBinDir   = "/usr/local/bin"
	DefaultShareDir = "/usr/share/erofsvm"
	DefaultMain     = "/etc/containerd/config.toml"

	program     = "erofsvm"
	modulesFile = "/etc/modules-load.d/erofsvm.conf"
	dropinName  = "erofsvm.toml"
)

// modules: containerd's snapshotter does not load unless the kernel knows EROFS
// when it starts, and nothing mounts one that could load the module. That of
// /dev/vhost-vsock is loaded by whoever opens it.
const modules = "# Written by \"erofsvm install\".\nerofs\n"

// Options say what to install, and where.
type Options struct {
	// Payload is a directory of this process's: bin/ with the shim and erofsvm,
	// guest/ with the kernel and the initramfs.
	Payload          string
	BinDir, ShareDir string
	// Config is the text of the runtime's configuration, "" for one that sets
	// nothing.
	Config string
	// Main is the main file of containerd's configuration, and DropinDir the
	// directory for ours, "" for conf.d beside it.
	Main, DropinDir string
	// Containerd is its program, and Release what it says of itself. Without the
	// program the effect of the drop-in is not tried.
	Containerd string
	Release    dropin.Release
	Dropin     dropin.Options
	Force      bool // overwrite and remove what others wrote or changed
	DryRun     bool // only say what would be done
}

// Installer works on one host.
type Installer struct {
	root hostroot.Root
	say  func(Change)
}

// New returns an Installer that tells each change when it is made.
func New(root hostroot.Root, say func(Change)) *Installer {
	return &Installer{root: root, say: say}
}

// Action is what becomes of a file.
type Action string

const (
	Created   Action = "created"
	Replaced  Action = "replaced"
	Unchanged Action = "unchanged"
	Kept      Action = "kept" // as somebody else left it
	Removed   Action = "removed"
)

// Change is what became of a file, or would become.
type Change struct {
	Action Action
	Path   string // on the host
	Why    string // of what is kept
}

// Result is what an installation did.
type Result struct {
	// Restart is whether containerd has to be started anew to take it, or what an
	// installation before this one did. It is asked for until Restarted.
	Restart bool
}

// ErrConflict is wrapped by an error about files that are somebody else's.
var ErrConflict = errors.New("not overwritten without --force")

// Install puts everything in place. What is in place already stays as it is.
func (i *Installer) Install(ctx context.Context, o Options) (result Result, err error) {
	unlock, err := i.lock(o.DryRun)
	if err != nil {
		return result, err
	}
	defer unlock()
	had, err := i.readManifest()
	if err != nil {
		return result, err
	}
	files, err := i.files(o, had)
	if err != nil {
		return result, err
	}
	steps, err := i.plan(files, had, o.Force)
	if err != nil {
		return result, err
	}
	result.Restart = had.Pending
	for _, s := range steps {
		known, _ := had.find(s.Path)
		result.Restart = result.Restart || s.writes() && s.file.containerd || s.Action == Removed && known.Containerd
	}
	if o.DryRun {
		for _, s := range steps {
			i.say(s.Change)
		}
		return result, nil
	}
	return result, i.apply(ctx, o, had, steps, result.Restart)
}

// files are what is to be there, in the order in which it is written: containerd's
// drop-in last, when all that it promises is in place.
func (i *Installer) files(o Options, had manifest) ([]file, error) {
	for what, dir := range map[string]string{"programs": o.BinDir, "guest image": o.ShareDir, "containerd's configuration": o.Main, "drop-in": cmp.Or(o.DropinDir, "/")} {
		if !path.IsAbs(dir) || path.Clean(dir) != dir {
			return nil, fmt.Errorf("path for the %s: %q is not absolute and clean", what, dir)
		}
	}
	shim := path.Join(o.BinDir, dropin.Shim)
	drop := path.Join(cmp.Or(o.DropinDir, path.Join(path.Dir(o.Main), "conf.d")), dropinName)
	main, beside, err := i.mainFile(o, had, drop)
	if err != nil {
		return nil, err
	}
	options := o.Dropin
	if !i.root.InPath(o.BinDir) {
		options.ShimPath = shim
	}
	text, err := dropin.Render(o.Release, beside, options)
	if err != nil {
		return nil, err
	}
	config, asked, err := configuration(o)
	if err != nil {
		return nil, err
	}
	files := []file{
		{path: shim, mode: 0o755, content: fromFile(path.Join(o.Payload, "bin", dropin.Shim))},
		{path: path.Join(o.BinDir, program), mode: 0o755, content: fromFile(path.Join(o.Payload, "bin", program))},
		{path: path.Join(o.ShareDir, "vmlinux"), mode: 0o644, content: fromFile(path.Join(o.Payload, "guest/vmlinux"))},
		{path: path.Join(o.ShareDir, "initrd.img"), mode: 0o644, content: fromFile(path.Join(o.Payload, "guest/initrd.img"))},
		{path: path.Join(o.ShareDir, path.Base(configs.DefaultPath)), mode: 0o644, content: fromText(configs.Defaults())},
		{path: modulesFile, mode: 0o644, content: fromText([]byte(modules))},
		{path: configs.DefaultPath, mode: 0o644, content: fromText(config), theirs: !asked},
	}
	if main != nil {
		files = append(files, file{path: o.Main, mode: 0o644, content: fromText(main), theirs: true, containerd: true})
	}
	return append(files, file{path: drop, mode: 0o644, content: fromText(text), containerd: true}), nil
}

// mainFile returns the text of containerd's main file if it is for this package to
// write, which is only if there is none, and what is beside the drop-in.
func (i *Installer) mainFile(o Options, had manifest, drop string) ([]byte, dropin.Existing, error) {
	beside, err := dropin.Look(i.root, o.Main, drop)
	if err != nil {
		return nil, beside, err
	}
	mine := false
	if entry, ok := had.find(o.Main); ok && beside.Found {
		sum, _, err := i.sum(o.Main)
		if err != nil {
			return nil, beside, err
		}
		mine = slices.Contains(entry.SHA256, sum)
	}
	switch {
	case !beside.Found || mine:
		text, err := dropin.Main(o.Release, drop)
		return text, dropin.Existing{}, err
	case !beside.Imported:
		return nil, beside, fmt.Errorf("%s does not import %s: add\n\n    imports = [%q]\n\nto its top (or to the list that is there), and run this again; a file that is yours is not edited",
			o.Main, drop, path.Join(path.Dir(drop), "*.toml"))
	}
	return nil, beside, nil
}

// configuration is the text of the runtime's configuration file, and whether
// somebody asked for just that.
func configuration(o Options) (text []byte, asked bool, err error) {
	if o.Config != "" {
		_, err := configs.Parse("configuration", []byte(o.Config))
		return []byte(o.Config), true, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Configuration of erofsvm: what differs from the defaults, all of which are in\n# %s\n",
		path.Join(o.ShareDir, path.Base(configs.DefaultPath)))
	if o.ShareDir != DefaultShareDir {
		fmt.Fprintf(&b, "\n[guest]\nkernel = %q\ninitrd = %q\n", path.Join(o.ShareDir, "vmlinux"), path.Join(o.ShareDir, "initrd.img"))
	}
	_, err = configs.Parse("configuration", b.Bytes())
	return b.Bytes(), false, err
}
