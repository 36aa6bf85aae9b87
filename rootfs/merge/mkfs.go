package merge

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"

	"github.com/erofsvm/erofsvm/rootfs/erofs"
	"github.com/erofsvm/erofsvm/rootfs/files"
	"github.com/erofsvm/erofsvm/rootfs/internal/tool"
)

// oldestMkfs is the first version that merges rightly: those before bring
// files back that an upper layer has deleted.
var oldestMkfs = version{1, 9, 3}

func findTool(name string) (tool.State, error) {
	t, err := tool.Find(name)
	if err != nil {
		return t, fmt.Errorf("%w: %w; install erofs-utils %s or newer, or set its path in the configuration", ErrTool, err, oldestMkfs)
	}
	return t, nil
}

// checkVersion asks t for its version, unless the answer is known.
func (b *Builder) checkVersion(ctx context.Context, t tool.State) error {
	b.mu.Lock()
	known := b.known == t
	b.mu.Unlock()
	if known {
		return nil
	}
	out, err := tool.Run(ctx, t.Path, nil, nil, "--version")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTool, err)
	}
	v, err := parseVersion(out)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrTool, t.Path, err)
	}
	if v.less(oldestMkfs) {
		return fmt.Errorf("%w: %s is version %s, which merges layers wrongly; install erofs-utils %s or newer", ErrTool, t.Path, v, oldestMkfs)
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
var versionLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^mkfs\.erofs (?:\(erofs-utils\) )?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?\b`)
})

func parseVersion(out []byte) (version, error) {
	first, _, _ := bytes.Cut(out, []byte("\n"))
	m := versionLine().FindSubmatch(first)
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
//
// The layers are handed over as descriptors, so that those are merged that were
// looked at: /proc/self/fd/4 and on, and 3 for out, which has no name.
func mergeLayers(ctx context.Context, t tool.State, out *os.File, uuid string, layers []*erofs.Image) error {
	args := []string{"--aufs", "--ovlfs-strip=1", "--quiet", "-U", uuid, tool.Inherited(0)}
	given, names := []*os.File{out}, make(map[string]string)
	known := make(map[*files.File]string)
	for _, l := range layers {
		if known[l.File] == "" {
			known[l.File] = tool.Inherited(len(given))
			names[known[l.File]] = l.Path
			given = append(given, l.Handle())
		}
		args = append(args, known[l.File])
	}
	// It opens each layer once more.
	if err := files.Room(len(given) + len(args)); err != nil {
		return fmt.Errorf("merge %d layers: %w", len(layers), err)
	}
	_, err := tool.Run(ctx, t.Path, given, names, args...)
	if err != nil {
		return fmt.Errorf("%w: merge %d layers, %q to %q: %w", ErrBuild, len(layers), layers[0].Path, layers[len(layers)-1].Path, err)
	}
	return nil
}
