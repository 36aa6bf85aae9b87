package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/erofsvm/erofsvm/guest/layout"
)

const (
	boot   = layout.StageBoot
	late   = layout.StageLate
	scsi   = layout.StageSCSI
	verity = layout.StageVerity
)

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string // below lib/modules/V
		wants []Want
		order string // "stage file", joined by spaces
	}{
		{
			name:  "dependencies stand in reverse",
			files: map[string]string{"modules.dep": "a.ko: b.ko c.ko\nb.ko: c.ko\nc.ko:\n"},
			wants: []Want{{Name: "a", Stage: boot}},
			order: "boot c.ko boot b.ko boot a.ko",
		},
		{
			name:  "a dependency is loaded once, with the first that needs it",
			files: map[string]string{"modules.dep": "a.ko: c.ko\nb.ko: c.ko\nc.ko:\n"},
			wants: []Want{{Name: "a", Stage: boot}, {Name: "b", Stage: late}},
			order: "boot c.ko boot a.ko late b.ko",
		},
		{
			name:  "names are the same with dashes",
			files: map[string]string{"modules.dep": "k/dm-verity.ko.zst: k/dm_mod.ko\nk/dm_mod.ko:\n"},
			wants: []Want{{Name: "dm_verity", Stage: late}},
			order: "late dm_mod.ko late dm-verity.ko",
		},
		{
			name:  "what is built in is skipped",
			files: map[string]string{"modules.dep": "a.ko:\n", "modules.builtin": "kernel/fs/ext4/ext4.ko\n"},
			wants: []Want{{Name: "ext4", Stage: late}, {Name: "a", Stage: late}},
			order: "late a.ko",
		},
		{
			name:  "a soft dependency that is built in under an alias is skipped",
			files: map[string]string{"modules.dep": "a.ko:\nfast.ko:\n", "modules.softdep": "# comment\nsoftdep a pre: crc32c\n", "modules.alias": "alias crc32c fast\n", "modules.builtin.modinfo": "crc32c_generic.license=GPL\x00crc32c_generic.alias=crc32c\x00"},
			wants: []Want{{Name: "a", Stage: boot}},
			order: "boot a.ko",
		},
		{
			name:  "a soft dependency on an alias takes the first module that has it",
			files: map[string]string{"modules.dep": "a.ko:\nfast.ko:\n", "modules.softdep": "softdep a pre: crc-32c post: other\n", "modules.alias": "# comment\nalias pci:v* net\nalias crc_32c fast\nalias crc_32c slow\n"},
			wants: []Want{{Name: "a", Stage: boot}},
			order: "boot fast.ko boot a.ko",
		},
		{
			name:  "a soft dependency that does not exist is none",
			files: map[string]string{"modules.dep": "a.ko:\n", "modules.softdep": "softdep a pre: nothing\n"},
			wants: []Want{{Name: "a", Stage: boot}},
			order: "boot a.ko",
		},
		{
			name:  "a stage on demand does not rely on another one",
			files: map[string]string{"modules.dep": "a.ko: c.ko\nb.ko: c.ko d.ko\nc.ko:\nd.ko:\n"},
			wants: []Want{{Name: "d", Stage: late}, {Name: "a", Stage: scsi}, {Name: "c", Stage: scsi}, {Name: "b", Stage: verity}},
			order: "late d.ko scsi c.ko scsi a.ko verity c.ko verity b.ko",
		},
		{
			name:  "what is optional is left out where it is not there",
			files: map[string]string{"modules.dep": "a.ko:\nb.ko: \n"},
			wants: []Want{{Name: "fast", Stage: late, Optional: true}, {Name: "b", Stage: late, Optional: true}, {Name: "a", Stage: late}},
			order: "late b.ko late a.ko",
		},
		{
			name:  "soft dependencies may go in a circle",
			files: map[string]string{"modules.dep": "a.ko:\nb.ko:\n", "modules.softdep": "softdep a pre: b\nsoftdep b pre: a\n"},
			wants: []Want{{Name: "a", Stage: boot}},
			order: "boot b.ko boot a.ko",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			modules, err := loadModules(moduleTree(t, c.files), c.wants)
			if err != nil {
				t.Fatal(err)
			}
			var order []string
			for _, m := range modules {
				order = append(order, m.Stage, m.File)
			}
			if got := strings.Join(order, " "); got != c.order {
				t.Errorf("order %q, want %q", got, c.order)
			}
		})
	}
}

// TestFileOfTwoStagesIsInTheImageOnce builds what two stages share.
func TestFileOfTwoStagesIsInTheImageOnce(t *testing.T) {
	modules, err := loadModules(moduleTree(t, map[string]string{"modules.dep": "a.ko: c.ko\nb.ko: c.ko\nc.ko:\n"}),
		[]Want{{Name: "a", Stage: scsi}, {Name: "b", Stage: verity}})
	if err != nil {
		t.Fatal(err)
	}
	var initrd bytes.Buffer
	if err := writeInitrd(&initrd, nil, modules); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(initrd.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, r := range records {
		if r.Name == "modules/c.ko" {
			found++
		}
	}
	if found != 1 {
		t.Errorf("c.ko is in the image %d times", found)
	}
	if got := moduleList(modules); got != "scsi c.ko\nscsi a.ko\nverity c.ko\nverity b.ko\n" {
		t.Errorf("list %q", got)
	}
}

func TestBadModuleTablesAreRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		dep   string
		wants []Want
		is    error
		says  string
	}{
		{"missing module", "b.ko:\n", []Want{{Name: "a", Stage: boot}}, ErrNoModule, "no module a"},
		{"missing dependency", "a.ko: b.ko\n", []Want{{Name: "a", Stage: boot}}, ErrNoModule, "dependency of a"},
		{"circle", "a.ko: b.ko\nb.ko: a.ko\n", []Want{{Name: "a", Stage: boot}}, nil, "depends on itself"},
		{"path that climbs", "../../../etc/a.ko:\n", []Want{{Name: "a", Stage: boot}}, nil, "below this directory"},
		{"absolute path", "a.ko: /etc/b.ko\n", []Want{{Name: "a", Stage: boot}}, nil, "below this directory"},
		{"no module", "a.txt:\n", []Want{{Name: "a", Stage: boot}}, nil, "no module"},
		{"no colon", "a.ko\n", []Want{{Name: "a", Stage: boot}}, nil, "colon"},
		{"same file name twice", "x/a.ko: y/a-b.ko\ny/a-b.ko: z/a_b.ko\nz/a_b.ko:\nx/a_b.ko:\n", []Want{{Name: "a", Stage: boot}}, nil, "depends on itself"},
		{"optional module without its dependency", "a.ko: b.ko\n", []Want{{Name: "a", Stage: boot, Optional: true}}, ErrNoModule, "dependency of a"},
		{"stage on demand that is over", "a.ko:\nb.ko:\n", []Want{{Name: "a", Stage: verity}, {Name: "b", Stage: scsi}}, nil, "is over"},
		{"stage that is over", "a.ko:\nb.ko:\n", []Want{{Name: "a", Stage: late}, {Name: "b", Stage: boot}}, nil, "is over"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := loadModules(moduleTree(t, map[string]string{"modules.dep": c.dep}), c.wants)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want an error that says %q", err, c.says)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %q", err, c.is)
			}
		})
	}
}

// moduleTree writes the tables and, for every local file that modules.dep
// names, a module; it returns the directory lib/modules/V.
func moduleTree(t *testing.T, tables map[string]string) string {
	t.Helper()
	files := map[string]string{}
	for name, content := range tables {
		files["lib/modules/V/"+name] = content
	}
	for _, line := range strings.Split(tables["modules.dep"], "\n") {
		if file, _, ok := strings.Cut(line, ":"); ok && filepath.IsLocal(file) {
			files["lib/modules/V/"+file] = elf.ELFMAG
		}
	}
	return filepath.Join(kernelTree(t, files), "lib/modules/V")
}

func TestSignaturesAreDropped(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"signed", signed("module", "signature"), "module"},
		{"unsigned", "module", "module"},
		{"empty signature", signed("module", ""), "module"},
		{"marker alone", signatureMarker, signatureMarker},
		{"length beyond the module", "m\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff" + signatureMarker, "m\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff" + signatureMarker},
	} {
		if got := string(unsigned([]byte(c.in))); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func FuzzModuleTables(f *testing.F) {
	f.Add("k/a.ko: k/b.ko.xz\nk/b.ko.xz:\n", "softdep a pre: c\n", "alias c b\n")
	f.Fuzz(func(t *testing.T, dep, softdep, alias string) {
		c, err := readCatalog(moduleTables(t, dep, softdep, alias))
		if err != nil {
			return
		}
		for _, path := range c.paths {
			if !filepath.IsLocal(path) {
				t.Errorf("%q leaves the directory", path)
			}
		}
		_, _ = c.resolve([]Want{{Name: "a", Stage: boot}})
	})
}

func moduleTables(t *testing.T, dep, softdep, alias string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.dep"), []byte(dep))
	write(t, filepath.Join(dir, "modules.softdep"), []byte(softdep))
	write(t, filepath.Join(dir, "modules.alias"), []byte(alias))
	return dir
}
