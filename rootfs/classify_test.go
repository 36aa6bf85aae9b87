package rootfs_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/rootfs"
)

const (
	upperImage = "/s/9/rwlayer.img"
	topLayer   = "/s/2/layer.erofs"
	baseLayer  = "/s/1/layer.erofs"
)

// ofList is the usual list of two layers, changed by edit.
func ofList(edit func(m []rootfs.Mount) []rootfs.Mount) []rootfs.Mount {
	return edit(blockMounts(upperImage, baseLayer, topLayer))
}

// option returns an edit that puts an option on mount i.
func option(i int, o string) func([]rootfs.Mount) []rootfs.Mount {
	return func(m []rootfs.Mount) []rootfs.Mount {
		m[i].Options = append(m[i].Options, o)
		return m
	}
}

// replace returns an edit that puts another option in the place of the one of
// mount i with the given start.
func replace(i int, start, o string) func([]rootfs.Mount) []rootfs.Mount {
	return func(m []rootfs.Mount) []rootfs.Mount {
		for j := range m[i].Options {
			if strings.HasPrefix(m[i].Options[j], start) {
				m[i].Options[j] = o
			}
		}
		return m
	}
}

func field(i int, set func(*rootfs.Mount)) func([]rootfs.Mount) []rootfs.Mount {
	return func(m []rootfs.Mount) []rootfs.Mount {
		set(&m[i])
		return m
	}
}

func TestTemplatesAreResolvedAndNotGuessedFromOrder(t *testing.T) {
	shuffled := []rootfs.Mount{
		{Type: "erofs", Source: baseLayer, Options: []string{"ro", "loop"}},
		{Type: "ext4", Source: upperImage, Options: []string{"rw", "loop"}},
		{Type: "erofs", Source: topLayer, Options: []string{"ro", "loop"}},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"lowerdir={{ mount 2 }}:{{mount 0}}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work",
			"X-containerd.mkdir.path={{ mount 1 }}/upper:0750:12:34",
		}},
	}
	bySource := func(m []rootfs.Mount) []rootfs.Mount {
		// A source may be used where a path is wanted; here it leads to a
		// directory of the host.
		m[3].Options = []string{"lowerdir={{ source 1 }}"}
		return m
	}
	downwards := replace(3, "lowerdir=", "lowerdir={{ overlay 2 1 }}")
	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		want   string // layers, topmost first, and the upper, or the refusal's class
	}{
		"shuffled":      {shuffled, topLayer + " " + baseLayer + " " + upperImage},
		"upwards":       {blockMounts(upperImage, baseLayer, topLayer), topLayer + " " + baseLayer + " " + upperImage},
		"downwards":     {ofList(downwards), baseLayer + " " + topLayer + " " + upperImage},
		"source":        {ofList(bySource), "host-mounted"},
		"explicit list": {ofList(replace(3, "lowerdir=", "lowerdir={{ mount 2 }}:{{ mount 1 }}")), baseLayer + " " + topLayer + " " + upperImage},
		"source of a source": {[]rootfs.Mount{
			{Type: "erofs", Source: topLayer},
			{Type: "format/erofs", Source: "{{ source 0 }}.below", Options: []string{"ro"}},
			{Type: "format/erofs", Source: "/c{{ source 1 }}", Options: []string{"ro"}},
			{Type: "format/overlay", Options: []string{"lowerdir={{ overlay 0 2 }}"}},
		}, topLayer + " " + topLayer + ".below /c" + topLayer + ".below"},
		"devices by source": {[]rootfs.Mount{
			{Type: "ext4", Source: upperImage, Options: []string{"rw"}},
			{Type: "format/erofs", Source: topLayer, Options: []string{"device={{ source 0 }}.1", "device=/with:colon"}},
		}, topLayer + " " + upperImage + ".1 /with:colon " + upperImage},
		"image by source, target of nothing": {[]rootfs.Mount{
			{Type: "erofs", Source: topLayer},
			{Type: "mkfs/format/ext4", Source: "{{ source 0 }}.img", Options: []string{"rw", "X-containerd.mkfs.size=64M"}},
			{Type: "format/mkdir/overlay", Options: []string{
				"lowerdir={{ mount 0 }}{{ target 0 }}", "upperdir={{target 0}}{{ mount 1 }}/upper", "workdir={{ mount 1 }}/work",
				"X-containerd.mkdir.path={{ mount 1 }}{{ target 1 }}/upper", "X-containerd.mkdir.path={{ mount 1 }}/work",
			}},
		}, topLayer + " " + topLayer + ".img ext4 of 67108864 00000000-0000-0000-0000-000000000000"},
		"image last, no overlay":     {unjoined(1), "/s/0/layer.erofs " + upperImage},
		"image first, no overlay":    {[]rootfs.Mount{unjoined(1)[1], unjoined(1)[0]}, "/s/0/layer.erofs " + upperImage},
		"no layer":                   {bareMounts("ext4", nil), upperImage},
		"image to be made":           {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=64MiB", "X-containerd.mkfs.uuid=00112233-4455-6677-8899-aabbccddeeff")), upperImage + " ext4 of 67108864 00112233-4455-6677-8899-aabbccddeeff"},
		"writable layer on the host": {hostUpperMounts("/u", topLayer, baseLayer), baseLayer + " " + topLayer + " memory for /u"},
		"view": {[]rootfs.Mount{
			{Type: "erofs", Source: topLayer, Options: []string{"ro", "loop"}},
			{Type: "erofs", Source: baseLayer, Options: []string{"ro", "loop"}},
			{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{"ro", "lowerdir={{ overlay 0 1 }}"}},
		}, topLayer + " " + baseLayer},
		"view of one layer by a bind": {[]rootfs.Mount{
			{Type: "erofs", Source: topLayer, Options: []string{"ro", "loop"}},
			{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}},
		}, topLayer},
		"view of one layer alone": {[]rootfs.Mount{{Type: "erofs", Source: topLayer, Options: []string{"ro", "loop"}}}, topLayer},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			layout, err := rootfs.Classify(c.mounts)
			if err != nil {
				got = string(classOf(t, err))
			} else {
				var paths []string
				for _, l := range layout.Lowers {
					paths = append(append(paths, l.Path), l.Devices...)
				}
				switch u := layout.Upper; {
				case u == nil:
				case u.HostDir != "":
					paths = append(paths, "memory for "+u.HostDir)
				default:
					if paths = append(paths, u.Path); u.Format != nil {
						paths = append(paths, fmt.Sprintf("%s of %d %s", u.Format.FS, u.Format.Size, u.Format.UUID))
					}
				}
				if layout.Upper != nil && !slices.Equal(mkdirs(layout.Upper), []string{"/upper", "/work"}) && name != "shuffled" {
					t.Errorf("directories are %v", mkdirs(layout.Upper))
				}
				got = strings.Join(paths, " ")
			}
			if got != c.want {
				t.Errorf("got %s (%v), want %s", got, err, c.want)
			}
		})
	}
}

func mkdirs(u *rootfs.Upper) []string {
	var paths []string
	for _, m := range u.Mkdirs {
		paths = append(paths, m.Path)
	}
	return paths
}

// hostUpperMounts is what containerd hands over for the layers, oldest first,
// and a directory of the host to write to.
func hostUpperMounts(upper string, layers ...string) []rootfs.Mount {
	mounts := blockMounts("", layers...)
	last := &mounts[len(mounts)-1]
	last.Options = append([]string{"workdir=/w", "upperdir=" + upper}, last.Options[4:]...)
	last.Options[2] = fmt.Sprintf("lowerdir={{ overlay 0 %d }}", len(layers)-1)
	if len(layers) == 1 {
		last.Options[2] = "lowerdir={{ mount 0 }}"
	}
	return mounts[1:]
}

// bareMounts is a writable image without a layer, with the given type, changed
// by edit.
func bareMounts(typ string, edit func([]rootfs.Mount)) []rootfs.Mount {
	mounts := []rootfs.Mount{
		{Type: typ, Source: upperImage, Options: []string{"rw", "loop"}},
		{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper", Options: []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind"}},
	}
	if edit != nil {
		edit(mounts)
	}
	return mounts
}

// withOption returns an edit that puts options on the first mount.
func withOption(options ...string) func([]rootfs.Mount) {
	return func(m []rootfs.Mount) { m[0].Options = append(m[0].Options, options...) }
}

// unjoined is n layers, a writable image behind them, and no overlay.
func unjoined(n int) []rootfs.Mount {
	var mounts []rootfs.Mount
	for i := range n {
		mounts = append(mounts, rootfs.Mount{Type: "erofs", Source: fmt.Sprintf("/s/%d/layer.erofs", i), Options: []string{"ro", "loop"}})
	}
	return append(mounts, rootfs.Mount{Type: "ext4", Source: upperImage, Options: []string{"rw", "loop"}})
}

func classOf(t *testing.T, err error) rootfs.Class {
	t.Helper()
	var refusal *rootfs.Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("%v is not a Refusal", err)
	}
	invalid := refusal.Class == rootfs.ClassInvalid
	if errdefs.IsInvalidArgument(err) != invalid || errdefs.IsNotImplemented(err) == invalid {
		t.Errorf("%v of class %s has the wrong class of containerd", err, refusal.Class)
	}
	return refusal.Class
}

// TestWrongListsAreRefused states for each list the class, and what the error
// has to name.
func TestWrongListsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		mounts []rootfs.Mount
		class  rootfs.Class
		names  string
	}{
		"empty list":      {nil, rootfs.ClassInvalid, "empty"},
		"10,000 mounts":   {make([]rootfs.Mount, 10000), rootfs.ClassInvalid, "10000"},
		"no type":         {[]rootfs.Mount{{}}, rootfs.ClassUnknown, `""`},
		"plain overlay":   {[]rootfs.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b", "upperdir=/c", "workdir=/d"}}}, rootfs.ClassHostMounted, `snapshotter = "erofs"`},
		"plain bind":      {[]rootfs.Mount{{Type: "bind", Source: "/a", Options: []string{"rbind", "rw"}}}, rootfs.ClassHostMounted, "runtime-allow-mounts"},
		"verity relative": {ofList(option(1, "X-containerd.dmverity=layer.erofs.dmverity")), rootfs.ClassInvalid, "absolute"},
		"verity twice": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			return option(1, "X-containerd.dmverity=/b")(option(1, "X-containerd.dmverity=/a")(m))
		}), rootfs.ClassInvalid, "twice"},
		"verity and index": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			return option(1, "X-containerd.dmverity=/b")(option(1, "device=/a")(m))
		}), rootfs.ClassUnknown, "one file"},
		"mapped owners":                {ofList(option(3, "uidmap=0:1000:1")), rootfs.ClassIDMap, "uidmap=0:1000:1"},
		"mapped owners of a layer":     {ofList(option(1, "uidmap=0:1000:1")), rootfs.ClassIDMap, "uidmap"},
		"mapped owners of the image":   {ofList(option(0, "gidmap=0:1000:1")), rootfs.ClassIDMap, "gidmap"},
		"template of an image unasked": {ofList(field(0, func(m *rootfs.Mount) { m.Source = "{{ source 1 }}" })), rootfs.ClassInvalid, "format"},
		"image of a later source":      {ofList(field(0, func(m *rootfs.Mount) { m.Type, m.Source = "format/ext4", "{{ source 1 }}" })), rootfs.ClassInvalid, "mount 1"},
		"no overlay":                   {ofList(func(m []rootfs.Mount) []rootfs.Mount { return m[:3] }), rootfs.ClassNoOverlay, "mount 2"},
		"unknown fs":                   {ofList(field(1, func(m *rootfs.Mount) { m.Type = "squashfs" })), rootfs.ClassUnknown, `"squashfs"`},
		"unknown prefix":               {ofList(field(1, func(m *rootfs.Mount) { m.Type = "verity/erofs" })), rootfs.ClassUnknown, `"verity"`},
		"prefix twice":                 {ofList(field(3, func(m *rootfs.Mount) { m.Type = "format/format/overlay" })), rootfs.ClassInvalid, "twice"},
		"erofs option":                 {ofList(option(1, "fsoffset=4096")), rootfs.ClassUnknown, "fsoffset=4096"},
		"erofs rw":                     {ofList(option(1, "rw")), rootfs.ClassUnknown, `"rw"`},
		"ext4 option":                  {ofList(option(0, "errors=panic")), rootfs.ClassUnknown, "errors=panic"},
		"ext4 ro":                      {ofList(replace(0, "rw", "ro")), rootfs.ClassUnknown, `"ro"`},
		"overlay option":               {ofList(option(3, "metacopy=on")), rootfs.ClassUnknown, "metacopy=on"},
		"template unasked":             {ofList(field(3, func(m *rootfs.Mount) { m.Type = "mkdir/overlay" })), rootfs.ClassInvalid, "format"},
		"mkdir unasked":                {ofList(field(3, func(m *rootfs.Mount) { m.Type = "format/overlay" })), rootfs.ClassInvalid, "mkdir"},
		"read-only without layers":     {bareMounts("ext4", func(m []rootfs.Mount) { m[1].Options = []string{"ro", "rbind"} }), rootfs.ClassNoLayers, "read-only"},
		"root of the image":            {bareMounts("ext4", func(m []rootfs.Mount) { m[1].Source = "{{ mount 0 }}" }), rootfs.ClassUnknown, "upper"},
		"bind with mapped owners":      {bareMounts("ext4", func(m []rootfs.Mount) { m[1].Options = append(m[1].Options, "gidmap=0:1000:1") }), rootfs.ClassIDMap, "gidmap"},
		"bind of both kinds":           {bareMounts("ext4", func(m []rootfs.Mount) { m[1].Options = append(m[1].Options, "ro") }), rootfs.ClassInvalid, "rw"},
		"bind option":                  {bareMounts("ext4", func(m []rootfs.Mount) { m[1].Options = append(m[1].Options, "nosuid") }), rootfs.ClassUnknown, "nosuid"},
		"image not for writing":        {bareMounts("ext4", func(m []rootfs.Mount) { m[0].Options = []string{"ro"} }), rootfs.ClassUnknown, `"ro"`},

		"upper on the host, work not": {ofList(replace(3, "upperdir", "upperdir=/u")), rootfs.ClassInvalid, "workdir"},
		"mkdir on the host": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			return replace(3, "workdir", "workdir=/w")(replace(3, "upperdir", "upperdir=/u")(m))
		}), rootfs.ClassInvalid, "writable image"},

		"mkfs of another kind": {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.fs=xfs")), rootfs.ClassUnknown, "xfs"},
		"mkfs without size":    {bareMounts("mkfs/ext4", nil), rootfs.ClassInvalid, "size"},
		"mkfs size":            {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=x")), rootfs.ClassInvalid, `"x"`},
		"mkfs size of nothing": {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=0")), rootfs.ClassInvalid, "0 bytes"},
		"mkfs negative size":   {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=-64M")), rootfs.ClassInvalid, "-64M"},
		"mkfs huge size":       {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=9223372036854775807k")), rootfs.ClassInvalid, "size"},
		"mkfs odd size":        {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=67108865")), rootfs.ClassInvalid, "512"},
		"mkfs two sizes":       {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=64M", "X-containerd.mkfs.size=64M")), rootfs.ClassInvalid, "twice"},
		"mkfs uuid":            {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=64M", "X-containerd.mkfs.uuid=-O ^journal")), rootfs.ClassInvalid, "UUID"},
		"mkfs other key":       {bareMounts("mkfs/ext4", withOption("X-containerd.mkfs.size=64M", "X-containerd.mkfs.features=x")), rootfs.ClassUnknown, "features"},

		"several layers, no overlay": {unjoined(3), rootfs.ClassNoOverlay, "3 layers"},
		"two images, no overlay":     {append(unjoined(1), unjoined(1)[1]), rootfs.ClassInvalid, "second"},
		"only a writable image":      {unjoined(0), rootfs.ClassNoOverlay, "0 layers"},
		"overlay in the middle":      {append(blockMounts(upperImage, baseLayer), unjoined(1)...), rootfs.ClassInvalid, "mount 2"},
		"layer in what is shown": {ofList(field(2, func(m *rootfs.Mount) {
			m.Type, m.Source = "format/erofs", "{{ mount 1 }}/layer.erofs"
		})), rootfs.ClassInvalid, "mount 1"},
		"device in what is shown": {ofList(field(2, func(m *rootfs.Mount) {
			m.Type, m.Options = "format/erofs", append(m.Options, "device={{ mount 1 }}")
		})), rootfs.ClassInvalid, "mount 1"},

		"mkfs unasked": {ofList(option(0, "X-containerd.mkfs.size=1")), rootfs.ClassInvalid, "mkfs"},

		"missing index": {ofList(replace(3, "lowerdir", "lowerdir={{ overlay 1 7 }}")), rootfs.ClassInvalid, "mount 7"},
		"cycle of sources": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			m[1].Type, m[1].Source = "format/erofs", "{{ source 2 }}"
			m[2].Type, m[2].Source = "format/erofs", "{{ source 1 }}"
			return m
		}), rootfs.ClassInvalid, "mount 2"},
		"two writable images": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			return append([]rootfs.Mount{m[0], m[1], m[2], {Type: "ext4", Source: "/other.img", Options: []string{"rw"}}}, m[3])
		}), rootfs.ClassInvalid, "mount 3"},
		"10,000 layers":      {blockMounts(upperImage, slices.Repeat([]string{baseLayer}, 10000)...), rootfs.ClassInvalid, "10002"},
		"its own index":      {ofList(replace(3, "lowerdir", "lowerdir={{ mount 3 }}")), rootfs.ClassInvalid, "mount 3"},
		"negative index":     {ofList(replace(3, "lowerdir", "lowerdir={{ mount -1 }}")), rootfs.ClassInvalid, `"-1"`},
		"great index":        {ofList(replace(3, "lowerdir", "lowerdir={{ mount 99999999999999999999 }}")), rootfs.ClassInvalid, "number"},
		"index in disguise":  {ofList(replace(3, "lowerdir", "lowerdir={{ mount 01 }}")), rootfs.ClassInvalid, "number"},
		"open template":      {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1")), rootfs.ClassInvalid, "closed"},
		"empty template":     {ofList(replace(3, "lowerdir", "lowerdir={{}}")), rootfs.ClassInvalid, "empty"},
		"unknown function":   {ofList(replace(3, "lowerdir", "lowerdir={{ env 1 }}")), rootfs.ClassInvalid, `"env"`},
		"too many arguments": {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1 2 }}")), rootfs.ClassInvalid, "arguments"},
		"too few arguments":  {ofList(replace(3, "lowerdir", "lowerdir={{ overlay 1 }}")), rootfs.ClassInvalid, "arguments"},
		"no lowerdir":        {ofList(replace(3, "lowerdir", "ro")), rootfs.ClassInvalid, "lowerdir"},
		"empty lowerdir":     {ofList(replace(3, "lowerdir", "lowerdir=")), rootfs.ClassInvalid, "empty"},
		"empty in lowerdir":  {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1 }}::{{ mount 2 }}")), rootfs.ClassInvalid, "empty"},
		"two lowerdirs":      {ofList(option(3, "lowerdir={{ mount 1 }}")), rootfs.ClassInvalid, "twice"},
		"two uppers":         {ofList(option(3, "upperdir={{ mount 0 }}/upper")), rootfs.ClassInvalid, "twice"},
		"layer used twice":   {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1 }}:{{ mount 2 }}:{{ mount 1 }}")), rootfs.ClassInvalid, "mount 1"},
		"layer left over":    {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1 }}")), rootfs.ClassInvalid, "mount 2"},
		"upper left over": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			m[3].Options = []string{"ro", "lowerdir={{ overlay 1 2 }}"}
			return m
		}), rootfs.ClassInvalid, "mount 0"},
		"upper as layer": {ofList(replace(3, "lowerdir", "lowerdir={{ overlay 0 2 }}")), rootfs.ClassInvalid, "mount 0"},
		"layer as upper": {ofList(func(m []rootfs.Mount) []rootfs.Mount {
			return replace(3, "workdir", "workdir={{ mount 1 }}/work")(replace(3, "upperdir", "upperdir={{ mount 1 }}/upper")(m))
		}), rootfs.ClassInvalid, "ext4"},
		"upper without work":   {ofList(replace(3, "workdir", "ro")), rootfs.ClassInvalid, "workdir"},
		"work elsewhere":       {ofList(replace(3, "workdir", "workdir={{ mount 1 }}/work")), rootfs.ClassUnknown, "mount 1"},
		"upper elsewhere":      {ofList(replace(3, "upperdir", "upperdir={{ mount 0 }}/up")), rootfs.ClassUnknown, `"/up"`},
		"upper of a ro mount":  {ofList(option(3, "ro")), rootfs.ClassInvalid, "ro"},
		"part of a layer":      {ofList(replace(3, "lowerdir", "lowerdir={{ mount 1 }}/usr:{{ mount 2 }}")), rootfs.ClassUnknown, `"/usr"`},
		"mount in mid-path":    {ofList(replace(3, "upperdir", "upperdir=/x{{ mount 0 }}")), rootfs.ClassInvalid, "middle"},
		"relative below mount": {ofList(replace(3, "upperdir", "upperdir={{ mount 0 }}upper")), rootfs.ClassInvalid, "absolute"},
		"dots below mount":     {ofList(replace(3, "upperdir", "upperdir={{ mount 0 }}/../upper")), rootfs.ClassInvalid, "clean"},

		"mkdir outside":   {ofList(replace(3, "X-containerd.mkdir.path={{ mount 0 }}/work", "X-containerd.mkdir.path=/etc/x:0755")), rootfs.ClassInvalid, "/etc/x"},
		"mkdir in layer":  {ofList(option(3, "X-containerd.mkdir.path={{ mount 1 }}/x:0755")), rootfs.ClassInvalid, "mount 0"},
		"mkdir dots":      {ofList(option(3, "X-containerd.mkdir.path={{ mount 0 }}/../x:0755")), rootfs.ClassInvalid, "clean"},
		"mkdir mode":      {ofList(option(3, "X-containerd.mkdir.path={{ mount 0 }}/x:4755")), rootfs.ClassInvalid, "4755"},
		"mkdir user":      {ofList(option(3, "X-containerd.mkdir.path={{ mount 0 }}/x:0755:root:0")), rootfs.ClassInvalid, "root"},
		"mkdir parts":     {ofList(option(3, "X-containerd.mkdir.path={{ mount 0 }}/x:0755:1")), rootfs.ClassInvalid, "3 parts"},
		"mkdir other key": {ofList(option(3, "X-containerd.mkdir.mode=1")), rootfs.ClassUnknown, "mkdir.mode"},
		"mkdir in a view": {[]rootfs.Mount{{Type: "erofs", Source: topLayer}, {Type: "format/mkdir/overlay", Options: []string{"lowerdir={{ mount 0 }}", "X-containerd.mkdir.path={{ mount 0 }}/x"}}}, rootfs.ClassInvalid, "writable"},
		"writable bind":   {[]rootfs.Mount{{Type: "erofs", Source: topLayer}, {Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind"}}}, rootfs.ClassInvalid, "writable"},
		"target":          {ofList(field(1, func(m *rootfs.Mount) { m.Target = "/etc" })), rootfs.ClassInvalid, "/etc"},
		"relative layer":  {ofList(field(1, func(m *rootfs.Mount) { m.Source = "layer.erofs" })), rootfs.ClassInvalid, "absolute"},
		"dots in a layer": {ofList(field(1, func(m *rootfs.Mount) { m.Source = "/s/../layer.erofs" })), rootfs.ClassInvalid, "clean"},
		"relative device": {ofList(option(1, "device=layer.erofs")), rootfs.ClassInvalid, "device=layer.erofs"},
		"relative upper":  {ofList(field(0, func(m *rootfs.Mount) { m.Source = "json:{}" })), rootfs.ClassInvalid, "absolute"},
		"newline in path": {ofList(field(1, func(m *rootfs.Mount) { m.Source = "/s/a\nRW 1 FLAT" })), rootfs.ClassInvalid, "control"},
		"DEL in option":   {ofList(option(1, "device=/a\x7f")), rootfs.ClassInvalid, "control"},
		"no UTF-8":        {ofList(field(1, func(m *rootfs.Mount) { m.Source = "/s/\xff" })), rootfs.ClassInvalid, "UTF-8"},
		"long source":     {ofList(field(1, func(m *rootfs.Mount) { m.Source = "/" + strings.Repeat("x", 5000) })), rootfs.ClassInvalid, "5001"},
		"long option":     {ofList(option(3, strings.Repeat("x", 100000))), rootfs.ClassInvalid, "100000"},
		"many options":    {ofList(field(3, func(m *rootfs.Mount) { m.Options = make([]string, 5000) })), rootfs.ClassInvalid, "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			layout, err := rootfs.Classify(c.mounts)
			if err == nil {
				t.Fatalf("taken for %+v", layout)
			}
			if got := classOf(t, err); got != c.class || !strings.Contains(err.Error(), c.names) {
				t.Errorf("class %s, want %s, with %q in: %v", got, c.class, c.names, err)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// TestHugeTemplatesEnd has sources that double each other: 2^40 parts if they
// were expanded.
func TestHugeTemplatesEnd(t *testing.T) {
	for _, seed := range []string{"/x", ""} {
		mounts := []rootfs.Mount{{Type: "format/erofs", Source: seed}}
		for i := range 40 {
			s := fmt.Sprintf("{{ source %d }}{{ source %d }}", i, i)
			mounts = append(mounts, rootfs.Mount{Type: "format/erofs", Source: s})
		}
		mounts = append(mounts, rootfs.Mount{Type: "format/overlay", Options: []string{"lowerdir={{ source 40 }}"}})
		if _, err := rootfs.Classify(mounts); err == nil {
			t.Error("taken")
		}
	}
}
