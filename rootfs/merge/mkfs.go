package merge

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
)

// oldestMkfs is the first version that merges rightly: those before bring
// files back that an upper layer has deleted.
var oldestMkfs = version{1, 9, 3}

const (
	// maxOutput is how much of what mkfs.erofs says goes into an error: the
	// end, where the reason stands.
	maxOutput = 2048

	// killDelay is how long a killed mkfs.erofs may hold on to its pipes.
	killDelay = time.Second
)

func findTool(name string) (tool, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return tool{}, fmt.Errorf("%w: %w; install erofs-utils %s or newer, or set its path in the configuration", ErrTool, err, oldestMkfs)
	}
	t, err := stateOf(path)
	if err != nil {
		return tool{}, fmt.Errorf("%w: %w", ErrTool, err)
	}
	return t, nil
}

// checkVersion asks t for its version, unless the answer is known.
func (b *Builder) checkVersion(ctx context.Context, t tool) error {
	b.mu.Lock()
	known := b.known == t
	b.mu.Unlock()
	if known {
		return nil
	}
	out, err := run(ctx, t.path, nil, "--version")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTool, err)
	}
	v, err := parseVersion(out)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrTool, t.path, err)
	}
	if v.less(oldestMkfs) {
		return fmt.Errorf("%w: %s is version %s, which merges layers wrongly; install erofs-utils %s or newer", ErrTool, t.path, v, oldestMkfs)
	}
	b.mu.Lock()
	b.known = t
	b.mu.Unlock()
	return nil
}

type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) less(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// versionLine is how mkfs.erofs and its kin name themselves, as in
// "mkfs.erofs (erofs-utils) 1.9.4" or "mkfs.erofs 1.7.1".
var versionLine = regexp.MustCompile(`^mkfs\.erofs (?:\(erofs-utils\) )?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?\b`)

func parseVersion(out []byte) (version, error) {
	first, _, _ := bytes.Cut(out, []byte("\n"))
	m := versionLine.FindSubmatch(first)
	if m == nil {
		return version{}, fmt.Errorf("says no version: %.100q", first)
	}
	var v version
	for i := range v {
		if len(m[i+1]) > 0 {
			v[i], _ = strconv.Atoi(string(m[i+1]))
		}
	}
	return v, nil
}

// mergeLayers lets mkfs.erofs write the index of the layers into out. The
// image gets the given UUID, so that it says itself what it was made of.
func mergeLayers(ctx context.Context, t tool, out *os.File, uuid string, layers []*erofs.Image) error {
	// The child finds out, which has no name, as its descriptor 3.
	args := []string{"--aufs", "--ovlfs-strip=1", "--quiet", "-U", uuid, "/proc/self/fd/3"}
	for _, l := range layers {
		args = append(args, l.Path)
	}
	if _, err := run(ctx, t.path, out, args...); err != nil {
		return fmt.Errorf("%w: merge %d layers, %q to %q: %w", ErrBuild, len(layers), layers[0].Path, layers[len(layers)-1].Path, err)
	}
	return nil
}

// run starts path with nothing of the caller's environment, waits for it, and
// returns what it wrote to standard output. It is killed when ctx ends.
func run(ctx context.Context, path string, out *os.File, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.WaitDelay = killDelay
	if out != nil {
		cmd.ExtraFiles = []*os.File{out}
	}
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	switch said := strings.TrimSpace(stderr.String()); {
	case err == nil:
		return stdout.data, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s was stopped: %w: %s", path, context.Cause(ctx), said)
	default:
		return nil, fmt.Errorf("%s: %w: %s", path, err, said)
	}
}

// tail keeps the end of what is written to it.
type tail struct{ data []byte }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - maxOutput; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.data) }
