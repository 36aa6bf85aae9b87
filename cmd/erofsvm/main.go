// Command erofsvm is for people who install the runtime or look into it; containerd
// runs the shim instead.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/hostcheck"
	"github.com/erofsvm/erofsvm/configs/install"
	"github.com/erofsvm/erofsvm/configs/nodelabel"
	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/rootfs/planview"
	"github.com/erofsvm/erofsvm/runtime/templates"
)

func main() {
	// Label runs until it is ended; what others do is given up.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "erofsvm:", planview.Line(err))
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{Use: "erofsvm", Short: "install the runtime erofsvm, or look into it", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(planview.NewCommand(defaults()), hostcheck.NewCommand(), install.NewCommand(), install.NewUninstallCommand(), nodelabel.NewCommand(), templates.NewCommand())
	return root
}

// defaults are what the shim plans with if its configuration says nothing.
func defaults() rootfs.Options {
	c := configs.Default().Rootfs
	return rootfs.Options{
		MkfsErofs:   c.MkfsErofs,
		CacheBytes:  int64(c.CacheMiB) << 20,
		Layers:      rootfs.Layers(c.Layers),
		Partitions:  true,
		MakeUpper:   true,
		MemoryUpper: int64(c.MemoryUpperMiB) << 20,
		Discard:     c.Discard,
	}
}
