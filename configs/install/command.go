package install

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostcheck"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// restartTimeout is how long containerd may take to stop and start.
const restartTimeout = 2 * time.Minute

// moduleTimeout is how long the kernel may take to load a module.
const moduleTimeout = 20 * time.Second

// flags are those of both commands.
type flags struct {
	root, path, restart string
	force, dryRun       bool
}

func (f *flags) add(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&f.root, "root", "/", "root directory of the host")
	set.StringVar(&f.path, "path", "", "where the host's containerd finds programs (default systemd's for services)")
	set.StringVar(&f.restart, "restart", "", "unit of systemd to restart if containerd has to take a change, such as containerd.service")
	set.BoolVar(&f.force, "force", false, "also overwrite and remove what somebody else wrote or changed")
	set.BoolVar(&f.dryRun, "dry-run", false, "only say what would be done")
}

// NewCommand returns the command "install".
func NewCommand() *cobra.Command {
	var f flags
	var release, config string
	var noCheck, skipUnfit bool
	o := Options{BinDir: DefaultBinDir, ShareDir: DefaultShareDir, Main: DefaultMain, Containerd: "containerd", Dropin: dropin.Default()}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "put the runtime on this host, and tell containerd of it",
		Long: `Install copies the shim, this program and the guest image, writes the runtime's
configuration, and a file that containerd's configuration imports. A file of
containerd's that is there is not changed: if it imports nothing, install says what
to add, and does nothing. It can be run again at any time, does only what is
missing, and does not overwrite what others wrote or changed.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := hostroot.New(f.root, f.path)
			if err != nil {
				return err
			}
			err = o.complete(cmd.Context(), root, release, config)
			if err == nil && !noCheck {
				if !f.dryRun {
					loadModule(cmd.Context(), root)
				}
				err = fit(cmd.Context(), root, o)
			}
			if errors.Is(err, errUnfit) && skipUnfit {
				fmt.Fprintf(cmd.OutOrStdout(), "nothing is installed: %v\n", err)
				return nil
			}
			if err != nil {
				return err
			}
			o.Force, o.DryRun = f.force, f.dryRun
			installer := New(root, teller(cmd))
			result, err := installer.Install(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := f.finish(cmd, root, result); err != nil || o.DryRun || !result.Restart {
				return err
			}
			return installer.Restarted()
		},
	}
	f.add(cmd)
	set := cmd.Flags()
	set.StringVar(&o.Payload, "payload", "", "directory with bin/ and guest/ to install from (default the one above this program's)")
	set.StringVar(&o.BinDir, "bin-dir", o.BinDir, "where programs go, on the host")
	set.StringVar(&o.ShareDir, "share-dir", o.ShareDir, "where the guest image goes, on the host")
	set.StringVar(&config, "configuration", "", "file of this process's to install as "+configs.DefaultPath)
	set.StringVar(&o.Main, "containerd-config", o.Main, "main file of containerd's configuration, on the host")
	set.StringVar(&o.DropinDir, "dropin-dir", "", "where the file for containerd goes, on the host (default conf.d beside the main file)")
	set.StringVar(&o.Containerd, "containerd", o.Containerd, "containerd, a name in PATH or a path on the host; empty to not run it")
	set.StringVar(&release, "containerd-version", "", "version of containerd, such as 2.4.2 (default what it says itself)")
	set.StringVar(&o.Dropin.Handler, "handler", o.Dropin.Handler, "name of the runtime for Kubernetes")
	set.StringVar(&o.Dropin.Sandboxer, "sandboxer", o.Dropin.Sandboxer, "who makes a pod: podsandbox, with a pause container, or shim, without")
	set.StringSliceVar(&o.Dropin.PodAnnotations, "pod-annotations", o.Dropin.PodAnnotations, "patterns for annotations of a pod that the runtime may see")
	set.StringVar(&o.Dropin.DefaultSize, "default-size", o.Dropin.DefaultSize, "size of a container's writable layer; the file is sparse")
	set.BoolVar(&o.Dropin.Fsverity, "fsverity", false, "protect the files of layers with fs-verity")
	set.BoolVar(&o.Dropin.Immutable, "immutable", false, "make the files of layers immutable")
	set.StringVar(&o.Dropin.DmverityMode, "dm-verity", "", "check layers with dm-verity: off, auto or on (default containerd's)")
	set.BoolVar(&o.Dropin.TarIndex, "tar-index", false, "keep layers as tar files with an index")
	set.StringSliceVar(&o.Dropin.MkfsOptions, "mkfs-options", o.Dropin.MkfsOptions, "options of mkfs.erofs for layers")
	set.BoolVar(&noCheck, "no-check", false, "install also where VMs could not run")
	set.BoolVar(&skipUnfit, "skip-unfit", false, "end with status 0, and do nothing, where VMs could not run")
	return cmd
}

// complete adds what has to be found out.
func (o *Options) complete(ctx context.Context, root hostroot.Root, release, config string) (err error) {
	if o.Payload == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Payload = filepath.Dir(filepath.Dir(self))
	}
	if config != "" {
		text, err := os.ReadFile(config)
		if err != nil {
			return err
		}
		o.Config = string(text)
	}
	if release != "" {
		o.Release, err = dropin.ParseRelease(release)
		return err
	}
	if o.Containerd == "" {
		return errors.New("--containerd is empty: --containerd-version has to say which it is")
	}
	if o.Release, err = hostcheck.Release(ctx, root, o.Containerd); err != nil {
		return fmt.Errorf("%w: %w", errUnfit, err)
	}
	return nil
}

// errUnfit is wrapped by what is said against a host.
var errUnfit = errors.New("VMs cannot run on this host (erofsvm check says more)")

// fit asks for what the configuration wants that is to be installed, or that is
// there.
func fit(ctx context.Context, root hostroot.Root, o Options) error {
	text := []byte(o.Config)
	if o.Config == "" {
		var err error
		if text, err = root.ReadFile(configs.DefaultPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	c, err := configs.Parse(configs.DefaultPath, text)
	if err != nil {
		return err
	}
	report := hostcheck.Check(ctx, hostcheck.Host{Root: root, Config: c, Shim: dropin.Shim, Containerd: cmp.Or(o.Containerd, "containerd")})
	if !report.Fit {
		return fmt.Errorf("%w: %s", errUnfit, strings.Join(report.Missing(hostcheck.Need), "; "))
	}
	return nil
}

// loadModule has the kernel know EROFS now, as it will from the next boot on. If it
// does not, the check says so.
func loadModule(ctx context.Context, root hostroot.Root) {
	ctx, cancel := context.WithTimeout(ctx, moduleTimeout)
	defer cancel()
	if known, err := root.ReadFile("/proc/filesystems"); err == nil && !bytes.Contains(known, []byte("\terofs\n")) {
		_, _ = root.Run(ctx, nil, "modprobe", "erofs")
	}
}

// NewUninstallCommand returns the command "uninstall".
func NewUninstallCommand() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "take the runtime away from this host",
		Long: `Uninstall removes what install wrote, containerd's file first. What somebody has
changed since stays. It does nothing while VMs run.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := hostroot.New(f.root, f.path)
			if err != nil {
				return err
			}
			result, err := New(root, teller(cmd)).Uninstall(f.force, f.dryRun)
			if err != nil {
				return err
			}
			return f.finish(cmd, root, result)
		},
	}
	f.add(cmd)
	return cmd
}

func teller(cmd *cobra.Command) func(Change) {
	return func(c Change) {
		why := ""
		if c.Why != "" {
			why = " (" + c.Why + ")"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%-9s %s%s\n", c.Action, c.Path, why)
	}
}

// finish has containerd take the change, or says that somebody should.
func (f *flags) finish(cmd *cobra.Command, root hostroot.Root, r Result) error {
	out := cmd.OutOrStdout()
	switch {
	case !r.Restart:
		return nil
	case f.dryRun || f.restart == "":
		_, err := fmt.Fprintln(out, "containerd takes the change when it is restarted: systemctl restart containerd")
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), restartTimeout)
	defer cancel()
	// In a container, systemctl sees that its root is not that of process 1, and
	// would do nothing.
	if _, err := root.Run(ctx, []string{"SYSTEMD_IGNORE_CHROOT=1"}, "systemctl", "restart", f.restart); err != nil {
		return fmt.Errorf("everything is in place, but containerd was not restarted: %w", err)
	}
	_, err := fmt.Fprintf(out, "restarted %s\n", f.restart)
	return err
}
