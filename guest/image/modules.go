package image

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/erofsvm/erofsvm/guest/layout"
)

// Want is a module that the guest needs, by the name that lsmod(8) shows, and
// the stage of layout.ModuleList in which it is loaded.
type Want struct {
	Name  string
	Stage string
	// Optional leaves the module out where the kernel does not have it.
	Optional bool
}

// DefaultModules are the modules of a pod, in the order in which they are
// wanted: before the agent listens only the transport it listens on, then what
// the first storage needs. Each of those costs the boot of every pod some
// milliseconds; what only some pods need is in a stage of its own, and costs the
// others its size. Whatever the kernel has built in is skipped; virtio and its
// PCI transport usually are.
func DefaultModules() []Want {
	return []Want{
		{Name: "virtio_pci", Stage: layout.StageBoot},
		{Name: "vmw_vsock_virtio_transport", Stage: layout.StageBoot},
		{Name: "virtio_blk", Stage: layout.StageLate},
		{Name: "erofs", Stage: layout.StageLate},
		{Name: "ext4", Stage: layout.StageLate},
		{Name: "overlay", Stage: layout.StageLate},
		{Name: "virtio_rng", Stage: layout.StageLate},
		{Name: "virtio_scsi", Stage: layout.StageSCSI},
		{Name: "sd_mod", Stage: layout.StageSCSI},
		// The hashes in plain C, which kernels have built in to check modules, do
		// for dm-verity; these use what the processor has for them. Since Linux
		// 6.16 they are part of lib/crypto and no modules of their own.
		{Name: "sha256_ssse3", Stage: layout.StageVerity, Optional: true},
		{Name: "sha512_ssse3", Stage: layout.StageVerity, Optional: true},
		{Name: "sha256_generic", Stage: layout.StageVerity, Optional: true},
		{Name: "sha512_generic", Stage: layout.StageVerity, Optional: true},
		{Name: "dm_verity", Stage: layout.StageVerity},
		{Name: "virtio_net", Stage: layout.StageNetwork},
		{Name: "virtiofs", Stage: layout.StageVirtioFS, Optional: true},
		{Name: "virtio_balloon", Stage: layout.StageMemory, Optional: true},
	}
}

// Module is one line of layout.ModuleList. A file that several stages need is
// in the image once.
type Module struct {
	File  string // in layout.ModuleDir
	Stage string
	path  string // in the kernel's package
	data  []byte // uncompressed, without signature
}

// loadModules resolves wants in a directory lib/modules/VERSION, and reads the
// modules in the order in which they must be loaded.
func loadModules(dir string, wants []Want) ([]Module, error) {
	catalog, err := readCatalog(dir)
	if err != nil {
		return nil, err
	}
	placed, err := catalog.resolve(wants)
	if err != nil {
		return nil, err
	}
	modules := make([]Module, 0, len(placed))
	seen := make(map[string]Module, len(placed)) // by file
	for _, p := range placed {
		file := moduleFile(p.path)
		if other, twice := seen[file]; twice && other.path == p.path {
			modules = append(modules, Module{File: file, Stage: p.stage, path: p.path, data: other.data})
			continue
		} else if twice {
			return nil, fmt.Errorf("modules %s and %s would both be %s/%s", other.path, p.path, layout.ModuleDir, file)
		}
		packed, err := readBounded(filepath.Join(dir, filepath.FromSlash(p.path)), maxModule)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w %s: modules.dep names it, but %w", ErrNoModule, p.path, err)
		}
		if err != nil {
			return nil, err
		}
		data, err := decompress(packed, maxModule, false)
		if err != nil {
			return nil, fmt.Errorf("unpack module %s: %w", p.path, err)
		}
		if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
			return nil, fmt.Errorf("module %s is not ELF", p.path)
		}
		seen[file] = Module{File: file, Stage: p.stage, path: p.path, data: unsigned(data)}
		modules = append(modules, seen[file])
	}
	return modules, nil
}

// catalog is what a kernel says of its modules. Names are normalised by
// moduleName throughout.
type catalog struct {
	dir      string
	paths    map[string]string   // name → path below the directory
	needs    map[string][]string // name → names, in the order of loading
	softPre  map[string][]string // name → names or aliases, better loaded before
	builtins map[string]bool     // names and plain aliases of what is compiled in
	aliases  map[string]string   // plain alias → name of the first module with it
}

// readCatalog reads the tables that depmod(8) and the kernel's build leave.
// modules.dep must be there; without the others nothing is built in, and no
// module has soft dependencies.
func readCatalog(dir string) (*catalog, error) {
	c := &catalog{
		dir: dir, paths: map[string]string{}, needs: map[string][]string{}, softPre: map[string][]string{},
		builtins: map[string]bool{}, aliases: map[string]string{},
	}
	tables := []struct {
		name     string
		required bool
		sep      byte
		add      func(line string) error
	}{
		{"modules.dep", true, '\n', c.addDep},
		{"modules.builtin", false, '\n', c.addBuiltin},
		{"modules.builtin.modinfo", false, 0, c.addBuiltinInfo},
		{"modules.softdep", false, '\n', c.addSoftdep},
		{"modules.alias", false, '\n', c.addAlias},
	}
	for _, table := range tables {
		data, err := readBounded(filepath.Join(dir, table.name), maxTable)
		if errors.Is(err, os.ErrNotExist) {
			if table.required {
				return nil, fmt.Errorf("%w; run depmod for this kernel", err)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := eachRecord(data, table.sep, table.add); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, table.name), err)
		}
	}
	return c, nil
}

// eachRecord calls add for every non-empty record that sep ends.
func eachRecord(data []byte, sep byte, add func(string) error) error {
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(nil, maxTable)
	scanner.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, sep); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	for number := 1; scanner.Scan(); number++ {
		if record := strings.TrimSpace(scanner.Text()); record != "" {
			if err := add(record); err != nil {
				return fmt.Errorf("record %d: %w", number, err)
			}
		}
	}
	return scanner.Err()
}

// addDep takes "a.ko: b.ko c.ko". A module's dependencies stand in the order
// opposite to that of loading (modules.dep(5)).
func (c *catalog) addDep(line string) error {
	module, list, ok := strings.Cut(line, ":")
	if !ok {
		return fmt.Errorf("%q has no colon", line)
	}
	files := strings.Fields(list)
	for _, file := range append([]string{module}, files...) {
		if !filepath.IsLocal(file) || moduleFile(file) == "" {
			return fmt.Errorf("%q is no module below this directory", file)
		}
	}
	name := moduleName(module)
	c.paths[name] = module
	for i := len(files) - 1; i >= 0; i-- {
		c.needs[name] = append(c.needs[name], moduleName(files[i]))
	}
	return nil
}

func (c *catalog) addBuiltin(line string) error {
	c.builtins[moduleName(line)] = true
	return nil
}

// addBuiltinInfo takes "name.key=value"; of the keys only the aliases matter.
func (c *catalog) addBuiltinInfo(record string) error {
	key, value, _ := strings.Cut(record, "=")
	if strings.HasSuffix(key, ".alias") {
		c.builtins[moduleName(value)] = true
	}
	return nil
}

// addSoftdep takes "softdep a pre: b c post: d"; comments are left out.
func (c *catalog) addSoftdep(line string) error {
	fields := strings.Fields(line)
	if len(fields) < 3 || fields[0] != "softdep" {
		return nil
	}
	name, kind := moduleName(fields[1]), ""
	for _, field := range fields[2:] {
		if strings.HasSuffix(field, ":") {
			kind = field
		} else if kind == "pre:" {
			c.softPre[name] = append(c.softPre[name], moduleName(field))
		}
	}
	return nil
}

// addAlias takes "alias a b"; patterns are for devices and are left out.
func (c *catalog) addAlias(line string) error {
	fields := strings.Fields(line)
	if len(fields) != 3 || fields[0] != "alias" || strings.ContainsAny(fields[1], "*?[") {
		return nil
	}
	if alias := moduleName(fields[1]); c.aliases[alias] == "" {
		c.aliases[alias] = moduleName(fields[2])
	}
	return nil
}

// placed is a module in the order of loading.
type placed struct {
	path  string
	stage string
}

// resolve puts wants and what they depend on into the order of loading: the
// stages as they stand in wants, a dependency with the first that needs it. A
// stage on demand may be the only one that is loaded of its kind, so it has all
// that the stages of every guest do not bring.
func (c *catalog) resolve(wants []Want) ([]placed, error) {
	r := resolution{catalog: c, state: map[string]int{}}
	always := r.state
	stage := layout.StageBoot
	for _, want := range wants {
		before, after := slices.Index(layout.Stages(), stage), slices.Index(layout.Stages(), want.Stage)
		switch {
		case after < 0:
			return nil, fmt.Errorf("module %s: there is no stage %q", want.Name, want.Stage)
		case after < before:
			return nil, fmt.Errorf("module %s: stage %s is over", want.Name, want.Stage)
		case after > before && layout.OnDemand(want.Stage):
			r.state = maps.Clone(always)
		}
		stage = want.Stage
		name := moduleName(want.Name)
		if _, there := c.paths[name]; want.Optional && !there {
			continue
		}
		if err := r.visit(name, stage, "wanted in stage "+stage); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// resolution is how far resolve has come.
type resolution struct {
	*catalog
	order []placed
	state map[string]int // by name: visiting, or done
}

const visiting, done = 1, 2

// visit places a module after what it depends on.
func (r *resolution) visit(name, stage, why string) error {
	if r.builtins[name] || r.state[name] == done {
		return nil
	}
	if r.state[name] == visiting {
		return fmt.Errorf("module %s depends on itself by way of %s", name, why)
	}
	file, ok := r.paths[name]
	if !ok {
		return fmt.Errorf("%w %s (%s): neither in %s/modules.dep nor in modules.builtin; use a kernel that has it",
			ErrNoModule, name, why, r.dir)
	}
	r.state[name] = visiting
	for _, soft := range r.softPre[name] {
		if provider, ok := r.softProvider(soft); ok && r.state[provider] != visiting {
			if err := r.visit(provider, stage, "soft dependency of "+name); err != nil {
				return err
			}
		}
	}
	for _, need := range r.needs[name] {
		if err := r.visit(need, stage, "dependency of "+name); err != nil {
			return err
		}
	}
	r.state[name] = done
	r.order = append(r.order, placed{file, stage})
	return nil
}

// softProvider names the module to load for a soft dependency. Nothing is to be
// loaded if the kernel has it built in, even where a module would be faster, or
// if there is no such module: that is what makes it soft.
func (c *catalog) softProvider(soft string) (string, bool) {
	if c.builtins[soft] {
		return "", false
	}
	if _, ok := c.paths[soft]; ok {
		return soft, true
	}
	provider, ok := c.aliases[soft]
	if !ok {
		return "", false
	}
	_, ok = c.paths[provider]
	return provider, ok
}

// moduleFile is the name of a module's file without directories and without
// the suffix of its compression, or "" if it is no module.
func moduleFile(file string) string {
	base := file[strings.LastIndexByte(file, '/')+1:]
	name, _, ok := strings.Cut(base, ".ko")
	if !ok || name == "" || strings.ContainsAny(name, " \t\n") {
		return ""
	}
	return name + ".ko"
}

// moduleName is the name that the kernel gives to a module: that of its file,
// with underscores. Aliases are compared the same way.
func moduleName(file string) string {
	base := file[strings.LastIndexByte(file, '/')+1:]
	name, _, _ := strings.Cut(base, ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
