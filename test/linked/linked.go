// Package linked tells what a Go program is linked of: how many bytes of its file
// each module takes. Its tests hold the shim to a budget, of which there is a copy
// for every pod of a host.
//
// Anybody may call it. It reads files and runs nothing.
package linked

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// Part is what a module has in a program.
type Part struct {
	Module string
	Bytes  uint64 // of its functions and data, without the tables that describe them
}

// Others stands for what belongs to no module: the tables of the runtime and of the
// linker, C libraries.
const Others = "(tables and others)"

// Parts reads a program that has its symbols. moduleOf says to which module a package
// belongs. The largest come first.
func Parts(program string, moduleOf func(pkg string) (string, bool)) ([]Part, error) {
	file, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		return nil, fmt.Errorf("symbols of %s (build it without -s): %w", program, err)
	}
	sizes := map[string]uint64{}
	for _, s := range symbols {
		if int(s.Section) >= len(file.Sections) || file.Sections[s.Section].Type == elf.SHT_NOBITS {
			continue // nothing in the file
		}
		module, ok := moduleOf(packageOf(s.Name))
		if !ok {
			module = Others
		}
		sizes[module] += s.Size
	}
	parts := make([]Part, 0, len(sizes))
	for module, size := range sizes {
		parts = append(parts, Part{module, size})
	}
	slices.SortFunc(parts, func(a, b Part) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Module, b.Module))
	})
	return parts, nil
}

// packageOf is the package of a symbol such as "path/of/pkg.(*Type).Method" or
// "type:.eq.path/of/pkg.Type".
func packageOf(symbol string) string {
	for _, prefix := range []string{"type:", "go:itab.", ".eq.", ".hash.", "*"} {
		symbol = strings.TrimPrefix(symbol, prefix)
	}
	if i := strings.IndexAny(symbol, "[({"); i >= 0 {
		symbol = symbol[:i]
	}
	slash := strings.LastIndexByte(symbol, '/')
	dot := strings.IndexByte(symbol[slash+1:], '.')
	if dot < 0 {
		return ""
	}
	// The linker writes the dots of a path's last element so.
	return strings.ReplaceAll(symbol[:slash+1+dot], "%2e", ".")
}
