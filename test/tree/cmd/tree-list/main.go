// Command tree-list prints a file tree, a line for each path, so that two trees
// can be compared byte by byte. It is static and runs in a container of any
// image. Package tree describes the lines.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/erofsvm/erofsvm/test/tree"
)

func main() {
	var options tree.Options
	flag.BoolVar(&options.OneFilesystem, "x", false, "leave out mount points and what is below them; name them on standard error")
	flag.BoolVar(&options.ModTime, "mtime", false, "with the time of modification")
	flag.Func("skip", "leave out this path below the root (can be given again)", func(path string) error {
		options.Skip = append(options.Skip, path)
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: tree-list [-x] [-mtime] [-skip path]... [root]")
		flag.PrintDefaults()
	}
	flag.Parse()
	root := "/"
	if flag.NArg() > 0 {
		root = flag.Arg(0)
	}
	if flag.NArg() > 1 {
		flag.Usage()
		os.Exit(2)
	}
	mounts, err := tree.List(os.Stdout, root, options)
	for _, mount := range mounts {
		fmt.Fprintf(os.Stderr, "mount point %q\n", mount)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tree-list:", err)
		os.Exit(1)
	}
}
