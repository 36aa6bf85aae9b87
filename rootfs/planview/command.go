// Package planview shows what a mount list becomes: the command erofsvm plan,
// for people, for programs, and for bug reports.
//
// It owns the words and the JSON of that output, and reads mount lists from
// files. It makes no decision about mounts, which are those of package rootfs,
// starts no VM and needs no right but to read the files that a list names. Its
// functions may be called from any goroutine.
package planview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// maxInput bounds a mount list, in bytes. The longest that is taken has 4 MiB
// of text.
const maxInput = 16 << 20

// flags are those of the command.
type flags struct {
	output  string
	data    string
	timeout time.Duration
	options rootfs.Options
}

// NewCommand returns the command "plan", whose flags have the values of defaults,
// those of the runtime, unless they are given; but for the cache, which is the
// caller's own. Its errors are for the eyes, of one line each when printed with
// [Line].
func NewCommand(defaults rootfs.Options) *cobra.Command {
	defaults.CacheDir, defaults.Lend = defaultCache(), false
	f := &flags{options: defaults}
	cmd := &cobra.Command{
		Use:   "plan [FILE]",
		Short: "show which disks and guest mounts a list of rootfs mounts becomes",
		Long: `Plan reads a JSON list of mounts, [{"type","source","target","options"}], from
FILE or from standard input, and prints what the runtime makes of it: the disks,
the files that they are made of, and what the guest mounts. A list that is
refused ends it with status 1 and one line that says why.

It runs no VM and needs neither root nor QEMU, only to read the files that the
list names. Several layers without an index are merged with mkfs.erofs, and the
result is kept in a cache.`,
		Args:          cobra.MaximumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args)
		},
	}
	set := cmd.Flags()
	set.StringVarP(&f.output, "output", "o", "text", "what to print: text, json, or vmdk for the descriptor that QEMU reads")
	set.StringVar(&f.data, "data", "", "with -o vmdk: the file to write the partition table to, which the descriptor then names")
	set.DurationVar(&f.timeout, "timeout", time.Minute, "how long mkfs.erofs may take")
	set.StringVar(&f.options.CacheDir, "cache", f.options.CacheDir, "directory for indexes of merged layers")
	set.StringVar(&f.options.MkfsErofs, "mkfs-erofs", defaults.MkfsErofs, "the mkfs.erofs to merge layers with")
	set.StringVar((*string)(&f.options.Layers), "layers", string(defaults.Layers), "how several layers become one disk: auto, merge or partition")
	set.BoolVar(&f.options.Partitions, "partitions", defaults.Partitions, "the guest finds layers in partitions, and checks them with dm-verity")
	set.BoolVar(&f.options.MakeUpper, "make-upper", defaults.MakeUpper, "the runtime makes the filesystem of a writable image that is missing")
	set.BoolVar(&f.options.Discard, "discard", defaults.Discard, "the guest tells a writable image of what it deletes")
	set.Int64Var(&f.options.MemoryUpper, "memory-upper", defaults.MemoryUpper, "bytes of guest memory for a writable layer without an image; 0 refuses it")
	return cmd
}

// defaultCache is the user's, "" if there is none.
func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil || !filepath.IsAbs(dir) {
		return ""
	}
	return filepath.Join(dir, "erofsvm", "merge")
}

func (f *flags) run(cmd *cobra.Command, args []string) error {
	show, err := f.printer()
	if err != nil {
		return err
	}
	if !filepath.IsAbs(f.options.CacheDir) {
		return fmt.Errorf("--cache %q is not an absolute path", f.options.CacheDir)
	}
	mounts, err := f.read(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(cmd, f.timeout)
	defer cancel()
	plan, err := rootfs.NewPlanner(f.options).Plan(ctx, mounts)
	if err != nil {
		return err
	}
	return show(cmd.OutOrStdout(), plan)
}

func (f *flags) read(stdin io.Reader, args []string) ([]rootfs.Mount, error) {
	if len(args) == 0 || args[0] == "-" {
		return Read(stdin)
	}
	file, err := os.Open(args[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	mounts, err := Read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", args[0], err)
	}
	return mounts, nil
}

// Read reads a JSON list of mounts, and nothing behind it.
func Read(r io.Reader) ([]rootfs.Mount, error) {
	limited := &io.LimitedReader{R: r, N: maxInput + 1}
	d := json.NewDecoder(limited)
	d.DisallowUnknownFields()
	var mounts []rootfs.Mount
	err := d.Decode(&mounts)
	switch {
	case limited.N == 0:
		return nil, fmt.Errorf("mount list: more than %d bytes", maxInput)
	case errors.Is(err, io.EOF):
		return nil, errors.New(`mount list: nothing to read; want [{"type","source","target","options"}]`)
	case err != nil:
		return nil, fmt.Errorf(`mount list: %w; want [{"type","source","target","options"}]`, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("mount list: there is something behind it")
	}
	return mounts, nil
}

// printer is the function that prints a plan as the flags say.
func (f *flags) printer() (func(io.Writer, *rootfs.Plan) error, error) {
	if f.data != "" && (f.output != "vmdk" || !filepath.IsAbs(f.data)) {
		return nil, fmt.Errorf("--data %q: wants -o vmdk and an absolute path", f.data)
	}
	switch f.output {
	case "text":
		return Text, nil
	case "json":
		return JSON, nil
	case "vmdk":
		return f.vmdk, nil
	}
	return nil, fmt.Errorf("-o %q is not known (text, json, vmdk are)", f.output)
}

// placeholder stands in a printed descriptor for the file that the runtime
// makes for the disk.
const placeholder = "/made/by/the/runtime/layers.vmdk.data"

func (f *flags) vmdk(w io.Writer, plan *rootfs.Plan) error {
	for _, d := range plan.Disks {
		if d.Driver != rootfs.DriverVMDK {
			continue
		}
		path := placeholder
		if f.data != "" && d.Generated != nil {
			if err := writeData(f.data, d.Generated); err != nil {
				return err
			}
			path = f.data
		}
		text, err := vmdk.Descriptor(vmdk.Resolve(d.Extents, path))
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	return fmt.Errorf("there is no descriptor: strategy %s has the layers on a raw disk", plan.Strategy)
}

func writeData(path string, g *vmdk.Generated) error {
	if err := os.WriteFile(path, g.Data, 0o644); err != nil {
		return err
	}
	return os.Truncate(path, g.Size)
}

// withTimeout bounds the command's context, which cobra leaves nil if nobody
// gave one.
func withTimeout(cmd *cobra.Command, timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	return context.WithTimeout(ctx, timeout)
}
