// Package dropin writes the file by which containerd learns of erofsvm: a part of
// its configuration that the administrator's own file imports.
//
// It owns the words of that file and what differs between the releases of
// containerd: a release warns of a key that it does not know, and of a file in an
// older version of the format, and one of them mixes versions up (see Render). It
// looks at the administrator's files, and changes none. Its functions keep nothing
// and may be called from any goroutine.
package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"
)

// Runtime is the name of the shim for containerd, and Shim that of its program.
const (
	Runtime = "io.containerd.erofsvm.v2"
	Shim    = "containerd-shim-erofsvm-v2"
)

// Options are what an administrator may choose. Their zero value is not valid;
// Default is.
type Options struct {
	// Handler is the name of the runtime for Kubernetes, the handler of a
	// RuntimeClass.
	Handler string
	// ShimPath is the shim's absolute path, "" where containerd finds it in PATH.
	ShimPath string
	// Sandboxer is "podsandbox", with a pause container, or "shim", without.
	Sandboxer string
	// PodAnnotations are patterns for annotations of a pod that the shim may
	// see. What it does with them is for its own configuration to say.
	PodAnnotations []string
	// DefaultSize is that of a container's writable image, such as "10G". The
	// file is sparse.
	DefaultSize string
	// Fsverity and Immutable have the snapshotter protect the files of layers.
	Fsverity, Immutable bool
	// DmverityMode is "off", "auto" or "on"; "" leaves containerd's default.
	DmverityMode string
	// TarIndex keeps layers as tar files with an index in front of them, instead
	// of as EROFS images.
	TarIndex bool
	// MkfsOptions are for mkfs.erofs, when it makes a layer.
	MkfsOptions []string
}

// Default are the options that are written if nobody chooses.
func Default() Options {
	return Options{
		Handler:        "erofsvm",
		Sandboxer:      "podsandbox",
		PodAnnotations: []string{"io.katacontainers.config*", "io.erofsvm.*"},
		// What a container can write; an empty image of it takes 4 MiB.
		DefaultSize: "10G",
		// Layers become reproducible, and their data stays in the order of the
		// tar: docs/snapshotters/erofs.md of containerd.
		MkfsOptions: []string{"-T0", "--mkfs-time", "--sort=none"},
	}
}

var (
	handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`) // a DNS label, as RuntimeClass wants it
	sizeText    = regexp.MustCompile(`^[1-9][0-9]{0,9}[KMGT]?i?B?$`)
)

// validate names the option that has a wrong value.
func (o Options) validate(r Release) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !handlerName.MatchString(o.Handler) {
		bad("handler %q is not a name such as erofsvm", o.Handler)
	}
	if o.ShimPath != "" && (!strings.HasPrefix(o.ShimPath, "/") || strings.ContainsFunc(o.ShimPath, control)) {
		bad("path of the shim %q is not absolute", o.ShimPath)
	}
	if !slices.Contains([]string{"podsandbox", "shim"}, o.Sandboxer) {
		bad("sandboxer %q is neither podsandbox nor shim", o.Sandboxer)
	}
	if o.Sandboxer == "shim" && !r.sandboxShims() {
		bad("sandboxer shim: containerd %s knows podsandbox alone for this runtime; 2.3 knows both", r)
	}
	if !sizeText.MatchString(o.DefaultSize) {
		bad("size %q of writable images is not like 10G", o.DefaultSize)
	}
	if !slices.Contains([]string{"", "off", "auto", "on"}, o.DmverityMode) {
		bad("dm-verity mode %q is none of off, auto, on", o.DmverityMode)
	}
	if o.DmverityMode != "" && o.DmverityMode != "off" && !r.knowsDmverity() {
		bad("dm-verity mode %q: containerd %s has no dm-verity; 2.3 has", o.DmverityMode, r)
	}
	for _, text := range slices.Concat(o.PodAnnotations, o.MkfsOptions) {
		if text == "" || strings.ContainsFunc(text, control) {
			bad("%q is empty or has a control character", text)
		}
	}
	return errors.Join(errs...)
}

func control(r rune) bool { return r < ' ' || r == 0x7f || r > '~' }

// Render returns the text of the file for a release of containerd beside the files
// that are there.
//
// From 2.3 on each file is brought to the newest version of the format before they
// are merged. 2.2 merges first, and takes the version of one file for all: a file
// in version 3 beside one in version 2 has it ignore the runtimes of the latter,
// with no more than a warning (LoadConfig in cmd/containerd/server/config, seen
// with 2.2.9). So there the file is in the version of the others.
func Render(r Release, beside Existing, o Options) ([]byte, error) {
	if err := r.supported(); err != nil {
		return nil, err
	}
	if err := o.validate(r); err != nil {
		return nil, err
	}
	version := r.configVersion()
	if !r.migratesEachFile() && len(beside.Versions) > 0 {
		version = beside.Versions[0]
		if len(beside.Versions) > 1 || version < 2 || version > r.configVersion() {
			return nil, fmt.Errorf("the files of containerd's configuration are in version %v of its format, and containerd %s wants all in version 2, or all in version 3: see `containerd config migrate`",
				beside.Versions, r)
		}
	}
	// A list of the administrator's stays, which ours would replace, and a pull for
	// a snapshotter that is not in it fails. 2.2 need not be told to pull for the
	// runtime, and then unpacks once more when a container is made.
	unpacks := beside.Unpacks == nil || slices.Contains(beside.Unpacks, "erofs")
	if r.pullsForRuntimes() && !unpacks {
		return nil, errors.New(`unpack_config in containerd's configuration has no entry for the EROFS snapshotter, so that no image could be pulled for it: add

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "erofs"
  differ = "erofs"`)
	}
	data := struct {
		Options
		Release                  Release
		Version                  int
		Runtime, CRI             string
		Dmverity, ImagePlatforms bool
		NoPause, UnpackConfig    bool
	}{
		Options: o, Release: r, Version: version, Runtime: Runtime, CRI: "io.containerd.cri.v1.runtime",
		Dmverity: r.knowsDmverity(), ImagePlatforms: !r.pullsForRuntimes() && unpacks, UnpackConfig: beside.Unpacks == nil, NoPause: r.leavesPauseAlone(),
	}
	if version == 2 {
		data.CRI = "io.containerd.grpc.v1.cri"
	}
	var out bytes.Buffer
	if err := text.Execute(&out, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// text is in the order in which a pod meets it: its runtime, its image, its layers.
var text = template.Must(template.New("").Funcs(template.FuncMap{"quote": quote, "list": list}).Parse(
	`# Written by "erofsvm install" for containerd {{.Release}}; "erofsvm uninstall" removes it.
# What is changed here is lost with the next installation: use its flags.
version = {{.Version}}

[plugins."{{.CRI}}".containerd.runtimes.{{quote .Handler}}]
  runtime_type = {{quote .Runtime}}
{{- with .ShimPath}}
  runtime_path = {{quote .}}
{{- end}}
  snapshotter = "erofs"
  sandboxer = {{quote .Sandboxer}}
{{- if and .NoPause (eq .Sandboxer "shim")}}
  disable_pause_image_pull = true
{{- end}}
  # A privileged container has all powers in its guest and no device of the host.
  privileged_without_host_devices = true
  # The configuration of the runtime says which of these it honours.
  pod_annotations = {{list .PodAnnotations}}
{{- if .ImagePlatforms}}

# Images are pulled into the snapshotter of the runtime; later releases know it
# from the section above, and how to unpack for it by themselves.
[plugins."io.containerd.cri.v1.images".runtime_platforms.{{quote .Handler}}]
  snapshotter = "erofs"
{{- if .UnpackConfig}}

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "overlayfs"
  differ = "walking"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "erofs"
  differ = "erofs"
{{- end}}
{{- end}}

[plugins."io.containerd.snapshotter.v1.erofs"]
  # Of the writable layer of each container. Without it that would be a directory
  # of the host, which a guest does not see.
  default_size = {{quote .DefaultSize}}
  enable_fsverity = {{.Fsverity}}
  set_immutable = {{.Immutable}}
{{- if and .Dmverity .DmverityMode}}
  dmverity_mode = {{quote .DmverityMode}}
{{- end}}

[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = {{list .MkfsOptions}}
  enable_tar_index = {{.TarIndex}}
{{- if and .Dmverity (eq .DmverityMode "on")}}
  enable_dmverity = true
{{- end}}

[plugins."io.containerd.service.v1.diff-service"]
  # For the layers of other snapshotters the first of them stands back.
  default = ["erofs", "walking"]
`))

// quote writes a TOML basic string. Every text that gets here is printable ASCII.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func list(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// Main is the text of a main file that imports the drop-in's folder and nothing
// else, for a host that has none: without one containerd imports nothing. All else
// is as without the file.
func Main(r Release, file string) ([]byte, error) {
	if err := r.supported(); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "# Written by \"erofsvm install\", since there was no such file.\nversion = %d\nimports = [%s]\n",
		r.configVersion(), quote(path.Join(path.Dir(file), "*.toml"))), nil
}
