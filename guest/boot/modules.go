package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/layout"
)

// Module is one line of the list of modules.
type Module struct {
	Stage string // one of layout.Stages
	File  string // name within the directory of the list
}

// maxModules bounds the list; a guest needs a few dozen.
const maxModules = 1024

// ReadModules reads the list of modules of the image. An image without a list
// has everything built into its kernel.
func ReadModules(path string) ([]Module, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list of modules: %w", err)
	}
	defer f.Close()
	modules, err := parseModules(f)
	if err != nil {
		return nil, fmt.Errorf("list of modules %s: %w", path, err)
	}
	return modules, nil
}

func parseModules(r io.Reader) ([]Module, error) {
	var modules []Module
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
			continue
		case len(fields) != 2, filepath.Base(fields[1]) != fields[1]:
			return nil, fmt.Errorf("line %d: %.80q, want a stage and the name of a file", n, lines.Text())
		case !slices.Contains(layout.Stages(), fields[0]):
			return nil, fmt.Errorf("line %d: stage %.20q", n, fields[0])
		case len(modules) == maxModules:
			return nil, fmt.Errorf("line %d: more than %d modules", n, maxModules)
		}
		modules = append(modules, Module{Stage: fields[0], File: fields[1]})
	}
	return modules, lines.Err()
}

// LoadModules loads the modules of a stage from dir, in the order of the list.
// All are tried: the kernel may have built in what one of them brings. The
// errors are those of all that failed.
func LoadModules(dir, stage string, modules []Module) error {
	var failed []error
	for _, m := range modules {
		if m.Stage == stage {
			if err := loadModule(filepath.Join(dir, m.File)); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// loadModule loads a module that is not there yet. One that finds nothing to
// drive on this machine (ENODEV, as a hash for instructions that the processor
// lacks) is no error: what cannot do without it will say so.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}
