// Command build-guest-image writes the guest's kernel and initramfs, and prints
// what is in them. Package image has the work.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/erofsvm/erofsvm/guest/image"
)

func main() {
	var options image.Options
	flag.StringVar(&options.KernelDir, "kernel", ".build/tools/kernel", "unpacked kernel package: boot/ and lib/modules/")
	flag.StringVar(&options.Version, "version", "", "kernel release, where the package has several")
	flag.StringVar(&options.Agent, "agent", "", "static binary of the agent")
	flag.StringVar(&options.Output, "out", ".build/guest", "directory for vmlinux, initrd.img and manifest.json")
	flag.Parse()
	if options.Agent == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	report, err := image.Build(options)
	if err == nil {
		err = report.WriteTable(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build-guest-image:", err)
		os.Exit(1)
	}
}
