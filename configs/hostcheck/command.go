package hostcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/configs/dropin"
	"github.com/erofsvm/erofsvm/configs/hostroot"
)

// Flags are those by which a command line names a host.
type Flags struct {
	Root, Path, Config, Shim, Containerd, Socket string
}

// Add adds the flags to a command.
func (f *Flags) Add(cmd *cobra.Command) {
	set := cmd.Flags()
	set.StringVar(&f.Root, "root", "/", "root directory of the host")
	set.StringVar(&f.Path, "path", "", "where the host's containerd finds programs (default systemd's for services)")
	set.StringVar(&f.Config, "config", configs.DefaultPath, "configuration of the runtime, a path on the host")
	set.StringVar(&f.Shim, "shim", dropin.Shim, "the shim, a name in PATH or a path on the host")
	set.StringVar(&f.Containerd, "containerd", "containerd", "containerd, a name in PATH or a path on the host")
	set.StringVar(&f.Socket, "socket", "/run/containerd/containerd.sock", "socket of containerd on the host; empty to not ask it")
}

// Host is what the flags name. A configuration that is not there is the default
// one.
func (f *Flags) Host() (Host, error) {
	root, err := hostroot.New(f.Root, f.Path)
	if err != nil {
		return Host{}, err
	}
	c := configs.Default()
	data, err := root.ReadFile(f.Config)
	switch {
	case err == nil:
		if c, err = configs.Parse(f.Config, data); err != nil {
			return Host{}, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return Host{}, err
	}
	return Host{Root: root, Config: c, Shim: f.Shim, Containerd: f.Containerd, Socket: f.Socket}, nil
}

// NewCommand returns the command "check".
func NewCommand() *cobra.Command {
	var flags Flags
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "say whether this host can run VMs, and whether the runtime is installed",
		Long: `Check looks for what the runtime needs of a host: QEMU, vsock, EROFS in the
kernel, mkfs.erofs, containerd, and for the parts of the runtime itself. It changes
nothing and starts no VM. It ends with status 1 if something is missing.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show, ok := map[string]func(io.Writer, Report) error{"text": text, "json": asJSON, "labels": labels}[output]
			if !ok {
				return fmt.Errorf("-o %q is not known (text, json, labels are)", output)
			}
			host, err := flags.Host()
			if err != nil {
				return err
			}
			report := Check(cmd.Context(), host)
			if err := show(cmd.OutOrStdout(), report); err != nil {
				return err
			}
			if !report.Ready {
				return errors.New("this host is not ready")
			}
			return nil
		},
	}
	flags.Add(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "what to print: text, json, or labels for a node")
	return cmd
}

func text(w io.Writer, r Report) error {
	for _, f := range r.Findings {
		mark := "ok"
		switch {
		case f.OK:
		case f.Kind == Note:
			mark = "note"
		default:
			mark = "MISSING"
		}
		if _, err := fmt.Fprintf(w, "%-8s %-13s %s\n", mark, f.Name, f.Detail); err != nil {
			return err
		}
	}
	return nil
}

func asJSON(w io.Writer, r Report) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func labels(w io.Writer, r Report) error {
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		if _, err := fmt.Fprintf(w, "%s=%s\n", name, r.Labels[name]); err != nil {
			return err
		}
	}
	return nil
}
