// Command erofsvm is for people who look into the runtime; containerd runs the
// shim instead.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/rootfs/planview"
)

func main() {
	root := &cobra.Command{Use: "erofsvm", Short: "look into the runtime erofsvm", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(planview.NewCommand())
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "erofsvm:", planview.Line(err))
		os.Exit(1)
	}
}
