// Package templates is the command "template" of erofsvm: for people who want a
// host's templates built before the first pod, or look into them.
//
// It is called once, by main. The shim builds by itself what its pods need, and what
// this command builds is the same. It runs no VM but the one that is to be saved.
package templates

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/configs"
	"github.com/erofsvm/erofsvm/hypervisor/template"
	"github.com/erofsvm/erofsvm/runtime/sandbox"
)

// NewCommand returns the command "template" with what it can do.
func NewCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "template",
		Short: "build, list or remove the saved VMs that pods go on from",
		Long: `With hypervisor.templates = "on" the VM of a pod goes on from one that was booted
before and saved. The shim has templates built when it misses them; with this command
they are there for the first pod too.`,
		SilenceUsage: true, SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&file, "config", "", "configuration of the runtime (default "+configs.DefaultPath+", if it is there)")
	cmd.AddCommand(buildCommand(&file), listCommand(&file), removeCommand(&file))
	return cmd
}

func buildCommand(file *string) *cobra.Command {
	var vcpus, memory int
	cmd := &cobra.Command{
		Use:   "build",
		Short: "boot a VM of this configuration and save it, unless that was done",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := configs.Load(*file)
			if err != nil {
				return err
			}
			if vcpus != 0 {
				c.Hypervisor.VCPUs = vcpus
			}
			if memory != 0 {
				c.Hypervisor.MemoryMiB = memory
			}
			if err := c.Validate(); err != nil {
				return err
			}
			spec, err := sandbox.TemplateSpec(c)
			if err != nil {
				return err
			}
			began := time.Now()
			key, err := sandbox.TemplateStore(c).Make(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if c.Hypervisor.Templates != configs.TemplatesOn {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: hypervisor.templates is %q, so that no pod uses it\n", c.Hypervisor.Templates)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s after %v\n", key, time.Since(began).Round(100*time.Millisecond))
			return err
		},
	}
	cmd.Flags().IntVar(&vcpus, "vcpus", 0, "processors, for pods whose annotations ask for another number than the configuration")
	cmd.Flags().IntVar(&memory, "memory-mib", 0, "memory in MiB, for such pods")
	return cmd
}

func listCommand(file *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "say which templates there are, and which could not be built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show, ok := map[string]func(io.Writer, []template.Info) error{"text": text, "json": asJSON}[output]
			if !ok {
				return fmt.Errorf("-o %q is not known (text, json are)", output)
			}
			c, err := configs.Load(*file)
			if err != nil {
				return err
			}
			all, err := sandbox.TemplateStore(c).List()
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), all)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "what to print: text or json")
	return cmd
}

func text(w io.Writer, all []template.Info) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tPROCESSORS\tMEMORY\tON DISK\tBUILT\tUSED\tFAILURES")
	for _, i := range all {
		if i.Error != "" {
			first, _, _ := strings.Cut(i.Error, "\n")
			fmt.Fprintf(t, "%s\tcould not be built: %.200s\n", i.Key, first)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d MiB\t%s\t%s\t%d\n", i.Key, argument(i, "-smp"), argument(i, "-m"), i.Disk>>20,
			i.Built.Local().Format(time.DateTime), i.Used.Local().Format(time.DateTime), i.Failures)
	}
	return t.Flush()
}

// argument is what QEMU is told behind an option.
func argument(i template.Info, option string) string {
	at := slices.Index(i.Depends.Arguments, option)
	if at < 0 || at+1 == len(i.Depends.Arguments) {
		return "?"
	}
	return i.Depends.Arguments[at+1]
}

func asJSON(w io.Writer, all []template.Info) error {
	if all == nil {
		all = []template.Info{} // and not null
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

func removeCommand(file *string) *cobra.Command {
	var everything bool
	cmd := &cobra.Command{
		Use:   "remove [KEY…]",
		Short: "remove templates; VMs that went on from them are not touched",
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) > 0) == everything {
				return errors.New("name the keys of templates, or --all")
			}
			c, err := configs.Load(*file)
			if err != nil {
				return err
			}
			store := sandbox.TemplateStore(c)
			if everything {
				all, err := store.List()
				if err != nil {
					return err
				}
				for _, i := range all {
					args = append(args, string(i.Key))
				}
			}
			var errs []error
			for _, key := range args {
				errs = append(errs, store.Remove(template.Key(key)))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&everything, "all", false, "all that there are")
	return cmd
}
