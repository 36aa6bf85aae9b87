// Command build-test-image writes the OCI images of the tests and the demo, if
// its inputs have changed, and prints what is in them. Package image has the
// work.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofsvm/erofsvm/test/image"
)

func main() {
	var in image.Inputs
	flag.StringVar(&in.Base, "base", ".build/tools/base", "folder with rootfs.tar and debs/")
	flag.StringVar(&in.TreeList, "tree-list", "", "static tree-list binary (default: beside this program)")
	flag.StringVar(&in.Out, "out", ".build/images", "folder for the archives")
	verbose := flag.Bool("v", false, "print the layers also if nothing had to be built")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(in, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "build-test-image:", err)
		os.Exit(1)
	}
}

func run(in image.Inputs, verbose bool) error {
	if in.TreeList == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		in.TreeList = filepath.Join(filepath.Dir(self), "tree-list")
	}
	summary, err := image.Build(in)
	if err != nil {
		return err
	}
	if summary.Cached && !verbose {
		for _, img := range summary.Images {
			fmt.Printf("%s is up to date (%d layers)\n", img.Name, len(img.Layers))
		}
		return nil
	}
	return summary.WriteTable(os.Stdout)
}
