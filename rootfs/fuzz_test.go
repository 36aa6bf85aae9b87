package rootfs_test

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// FuzzClassify wants every list refused with a class, or planned with nothing
// lost; and no option to reach the guest that it does not know.
func FuzzClassify(f *testing.F) {
	for _, c := range captures(f)[:40] {
		for _, m := range c.Rootfs {
			f.Add(m.Type, m.Source, strings.Join(m.Options, "\n"))
		}
	}
	f.Add("format/overlay", "", "lowerdir={{ overlay 1 0 }}:{{source 1}}{{target 0}}")
	f.Fuzz(func(t *testing.T, typ, source, options string) {
		last := rootfs.Mount{Type: typ, Source: source, Options: strings.Split(options, "\n")}
		mounts := append(blockMounts(upperImage, baseLayer, topLayer)[:3], last)
		layout, err := rootfs.Classify(mounts)
		if err != nil {
			classOf(t, err)
			return
		}
		images := len(layout.Lowers)
		if layout.Upper != nil {
			images++
		}
		if images != 3 {
			t.Errorf("%d images of 3 in %+v", images, layout)
		}
	})
}

// FuzzMountList wants every list refused with a class, or a layout with a place
// for each image and nothing in it that was not checked.
func FuzzMountList(f *testing.F) {
	add := func(mounts []rootfs.Mount) {
		raw, err := json.Marshal(mounts)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	for i, c := range captures(f) {
		if i%20 == 0 && len(c.Rootfs) < 10 {
			add(c.Rootfs)
		}
	}
	for _, mounts := range [][]rootfs.Mount{
		blockMounts(upperImage, baseLayer, topLayer), hostUpperMounts("/u", baseLayer, topLayer), unjoined(1), unjoined(3),
		bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=64M", "X-containerd.mkfs.uuid=00112233-4455-6677-8899-aabbccddeeff")),
		ofList(option(1, "X-containerd.dmverity=/s/2/layer.erofs.dmverity")), ofList(option(1, "device=/a")),
		ofList(field(1, func(m *rootfs.Mount) { m.Type, m.Source = "format/erofs", "{{ source 0 }}" })),
	} {
		add(mounts)
	}
	planner := rootfs.NewPlanner(rootfs.Options{CacheDir: "/nonexistent", Partitions: true, MakeUpper: true, MemoryUpper: 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var mounts []rootfs.Mount
		if json.Unmarshal(raw, &mounts) != nil {
			return
		}
		layout, err := rootfs.Classify(mounts)
		if err != nil {
			if classOf(t, err); len(err.Error()) > 4000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		checkLayout(t, mounts, layout)
		if len(layout.Lowers) == 0 {
			return
		}
		if _, err := os.Lstat(layout.Lowers[0].Path); err == nil {
			return // something of this host, not to be opened here
		}
		if plan, err := planner.Plan(t.Context(), mounts); err == nil {
			t.Errorf("planned without its files: %+v", plan)
		}
	})
}

func checkLayout(t *testing.T, mounts []rootfs.Mount, layout *rootfs.Layout) {
	t.Helper()
	images, want := len(layout.Lowers), 0
	for _, m := range mounts {
		if strings.HasSuffix(m.Type, "erofs") || strings.HasSuffix(m.Type, "ext4") {
			want++
		}
	}
	options := []string{"ro", "rw", "discard", "nodiscard", "noatime", "nodiratime", "relatime", "norelatime", "strictatime", "lazytime"}
	file := func(p string) {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsFunc(p, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Errorf("path %q", p)
		}
	}
	allowed := func(given []string) {
		for _, o := range given {
			if !slices.Contains(options, o) {
				t.Errorf("option %q reaches the guest", o)
			}
		}
	}
	if u := layout.Upper; u != nil {
		allowed(u.Options)
		if u.Path != "" {
			images++
			file(u.Path)
		} else {
			file(u.HostDir)
		}
		for _, m := range u.Mkdirs {
			if file(m.Path); m.Mode > 0o777 {
				t.Errorf("directory %+v", m)
			}
		}
	}
	for _, l := range layout.Lowers {
		allowed(l.Options)
		for _, p := range append(append([]string{l.Path}, l.Devices...), l.Verity) {
			if p != "" {
				file(p)
			}
		}
	}
	if images != want || len(layout.Lowers) == 0 && layout.Upper == nil {
		t.Errorf("%d images of %d in %+v", images, want, layout)
	}
}

// FuzzPlan wants every layer refused, or a disk whose extents lie within their
// files and together have the length of the disk, in each strategy.
func FuzzPlan(f *testing.F) {
	image := func(change func(super []byte)) []byte {
		raw := make([]byte, 4096)
		super, le := raw[1024:], binary.LittleEndian
		le.PutUint32(super, 0xE0F5E1E2)
		super[12] = 9
		le.PutUint32(super[36:], 4)
		if change != nil {
			change(super)
		}
		return super[:512]
	}
	tarIndex := func(super []byte) {
		le := binary.LittleEndian
		le.PutUint32(super[80:], 8)
		le.PutUint16(super[86:], 1)
		le.PutUint16(super[88:], 9)
		le.PutUint32(super[128+64:], 3) // blocks
		le.PutUint32(super[128+68:], 4) // start
	}
	f.Add(image(nil), uint32(4096), true)
	f.Add(image(tarIndex), uint32(4096), true)
	f.Add(image(tarIndex), uint32(3584), false)
	f.Add(image(func(super []byte) { super[12] = 12 }), uint32(8192), false)
	dir := f.TempDir()
	upper := ext4Image(f, 1<<20)
	f.Fuzz(func(t *testing.T, super []byte, size uint32, several bool) {
		layer := filepath.Join(dir, "layer.erofs")
		write(t, layer, append(make([]byte, 1024), super...))
		must(t, os.Truncate(layer, int64(size%(1<<24))))
		layers := []string{layer}
		if several {
			layers = append(layers, layer)
		}
		planner := rootfs.NewPlanner(rootfs.Options{CacheDir: dir, MkfsErofs: "/nonexistent", Partitions: true})
		plan, err := planner.Plan(t.Context(), blockMounts(upper, layers...))
		if err != nil {
			return
		}
		disk := plan.Disks[1]
		if disk.Driver == rootfs.DriverRaw {
			if disk.Bytes != int64(size%(1<<24)) {
				t.Errorf("%+v of a file of %d bytes", disk, size)
			}
			return
		}
		if _, err := vmdk.Descriptor(vmdk.Resolve(disk.Extents, "/generated")); err != nil {
			t.Error(err)
		}
		bytes := int64(0)
		for _, e := range disk.Extents {
			length := int64(size % (1 << 24))
			if e.Path == "" {
				length = disk.Generated.Size
			}
			if bytes += e.Sectors * 512; (e.Offset+e.Sectors)*512 > length {
				t.Errorf("extent %+v of a file of %d bytes", e, length)
			}
		}
		if bytes != disk.Bytes {
			t.Errorf("extents of %d bytes, the disk has %d", bytes, disk.Bytes)
		}
	})
}
