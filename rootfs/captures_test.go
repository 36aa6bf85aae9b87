package rootfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/internal/erofstest"
)

// world has files to stand for those of the captures: thirty layers of each
// kind, oldest first, and indexes of the lowest of them.
type world struct {
	plain, tar, protected, protectedTar []string
	indexes                             map[string]string
	dir, upper                          string
}

func newWorld(t *testing.T) *world {
	w := &world{dir: t.TempDir(), upper: ext4Image(t, 1<<20), indexes: make(map[string]string)}
	for i := range 30 {
		entries := []erofstest.Entry{erofstest.File(fmt.Sprintf("of-%d", i), strings.Repeat("x", 100*i))}
		name := func(kind string) string { return fmt.Sprintf("%s-%02d.erofs", kind, i) }
		w.plain = append(w.plain, erofstest.Layer(t, w.dir, name("plain"), entries))
		w.tar = append(w.tar, erofstest.TarLayer(t, w.dir, name("tar"), entries))
		w.protected = append(w.protected, erofstest.Layer(t, w.dir, name("protected"), entries))
		w.protectedTar = append(w.protectedTar, erofstest.TarLayer(t, w.dir, name("protected-tar"), entries))
		erofstest.Protect(t, w.protected[i])
		erofstest.Protect(t, w.protectedTar[i])
	}
	return w
}

// rewrite returns the mounts of a capture with files of the world.
func (w *world) rewrite(t *testing.T, c capture) []rootfs.Mount {
	layers := w.plain
	tar, verity := strings.Contains(c.Snapshotter, "tarindex"), false
	below := 0 // layers of a mount and those after it
	for _, m := range c.Rootfs {
		if strings.HasSuffix(m.Type, "erofs") {
			below++
		}
		verity = verity || strings.Contains(strings.Join(m.Options, " "), "X-containerd.dmverity=")
	}
	switch {
	case tar && verity:
		layers = w.protectedTar
	case tar:
		layers = w.tar
	case verity:
		layers = w.protected
	}
	var out []rootfs.Mount
	for _, m := range c.Rootfs {
		devices := 0
		var options []string
		for _, o := range m.Options {
			key, _, _ := strings.Cut(o, "=")
			switch {
			case key == "device":
				options = append(options, "device="+layers[devices])
				devices++
			case key == "X-containerd.dmverity":
				options = append(options, "X-containerd.dmverity="+layers[below-1]+".dmverity")
			case key == "upperdir" && !strings.Contains(o, "{{"):
				options = append(options, "upperdir="+w.dir+"/none")
			default:
				options = append(options, o)
			}
		}
		switch m.Type {
		case "ext4":
			m.Source = w.upper
		case "mkfs/ext4":
			m.Source = w.dir + "/to-be-made.img"
		case "erofs":
			if below--; devices > 0 {
				m.Source = w.index(t, layers[:devices])
			} else {
				m.Source = layers[below]
			}
		}
		m.Options = options
		out = append(out, m)
	}
	return out
}

func (w *world) index(t *testing.T, layers []string) string {
	key := layers[len(layers)-1]
	if w.indexes[key] == "" {
		w.indexes[key] = filepath.Join(w.dir, fmt.Sprintf("index-of-%d.erofs", len(layers)))
		makeIndex(t, w.indexes[key], layers)
	}
	return w.indexes[key]
}

// TestEveryCaptureHasItsPlan has the captures with real files behind them, and
// everything switched on.
func TestEveryCaptureHasItsPlan(t *testing.T) {
	w := newWorld(t)
	planner := plannerWith(t, func(o *rootfs.Options) { o.MakeUpper, o.MemoryUpper = true, 64<<20 })
	ctx := deadline(t)
	var got bytes.Buffer
	for _, c := range captures(t) {
		fmt.Fprintf(&got, "%s | %s | %s | %s: ", c.Containerd, c.Snapshotter, c.Image, c.Claims)
		plan, err := planner.Plan(ctx, w.rewrite(t, c))
		var refusal *rootfs.Refusal
		switch {
		case err == nil:
			fmt.Fprintln(&got, planSummary(plan))
		case errors.As(err, &refusal):
			fmt.Fprintf(&got, "refused, %s\n", refusal.Class)
		default:
			t.Errorf("%s %s: %v", c.Snapshotter, c.Image, err)
		}
	}
	golden(t, "testdata/plans.golden", got.Bytes())
}

// planSummary is a plan in a line.
func planSummary(p *rootfs.Plan) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, upper on %s", p.Strategy, p.Upper)
	for _, d := range p.Disks {
		fmt.Fprintf(&s, "; %s %s", d.Role, d.Driver)
		if d.Format != nil {
			fmt.Fprintf(&s, " to be made, %d bytes", d.Bytes)
		}
		if n := len(d.Extents); n > 0 {
			fmt.Fprintf(&s, " of %d extents", n)
		}
		if n := len(d.Partitions); n > 0 {
			fmt.Fprintf(&s, ", %d partitions", n)
		}
	}
	verity := 0
	for _, st := range p.Storages {
		if strings.Contains(strings.Join(st.Options, " "), "dmverity-enabled") {
			verity++
		}
	}
	fmt.Fprintf(&s, "; %d storages", len(p.Storages))
	if verity > 0 {
		fmt.Fprintf(&s, ", %d with dm-verity", verity)
	}
	return s.String()
}
