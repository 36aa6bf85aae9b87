package dropin

import (
	"fmt"
	"regexp"
	"strconv"
)

// Release is a release line of containerd. The facts about them are those of
// their sources: version/version.go, plugins/snapshots/erofs/plugin,
// plugins/diff/erofs/plugin and plugins/cri in 2.2.9, 2.3.7 and 2.4.2.
type Release struct{ Major, Minor int }

func (r Release) String() string { return fmt.Sprintf("%d.%d", r.Major, r.Minor) }

// versionLine is how containerd names itself, as in
// "containerd github.com/containerd/containerd/v2 v2.4.2 abc".
var versionLine = regexp.MustCompile(`(?:^|\s)v?(\d{1,4})\.(\d{1,4})(?:\.\d{1,4}(?:[-+~.][0-9A-Za-z.+~-]*)?)?(?:\s|$)`)

// ParseRelease reads a version such as "2.4.2", or what containerd --version says.
func ParseRelease(text string) (Release, error) {
	m := versionLine.FindStringSubmatch(text)
	if m == nil {
		return Release{}, fmt.Errorf("%.100q has no version of containerd, such as 2.4.2", text)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return Release{major, minor}, nil
}

func (r Release) supported() error {
	if r.Major != 2 || r.Minor < 2 {
		return fmt.Errorf("containerd %s: 2.2 or a later 2.x is wanted, whose EROFS snapshotter gives layers to a runtime unmounted", r)
	}
	return nil
}

// configVersion is the newest version of the configuration's format.
func (r Release) configVersion() int {
	if r.Minor >= 3 {
		return 4
	}
	return 3
}

// migratesEachFile: before that, files are merged whatever their versions.
func (r Release) migratesEachFile() bool { return r.Minor >= 3 }

// knowsDmverity: dmverity_mode of the snapshotter, enable_dmverity of the differ.
func (r Release) knowsDmverity() bool { return r.Minor >= 3 }

// pullsForRuntimes: images are pulled into the snapshotter that the section of a
// runtime names (UpdateRuntimeSnapshotter in internal/cri/server/images), and
// unpacked for EROFS by default (plugins/transfer/plugin_defaults_linux.go).
func (r Release) pullsForRuntimes() bool { return r.Minor >= 3 }

// sandboxShims: a pod's sandbox can be made by the shim (docs/pods.md).
func (r Release) sandboxShims() bool { return r.Minor >= 3 }

// leavesPauseAlone: disable_pause_image_pull of a runtime.
func (r Release) leavesPauseAlone() bool { return r.Minor >= 4 }
