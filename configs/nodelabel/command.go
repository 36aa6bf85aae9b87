package nodelabel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/erofsvm/erofsvm/configs/hostcheck"
)

// NewCommand returns the command "label", which ends when its context does.
func NewCommand() *cobra.Command {
	var flags hostcheck.Flags
	var node string
	var every time.Duration
	var remove bool
	cmd := &cobra.Command{
		Use:   "label",
		Short: "keep the labels of a Kubernetes node true, from a pod on it",
		Long: `Label sets ` + hostcheck.LabelReady + ` and ` + hostcheck.LabelKVM + ` on a node, to what "erofsvm check"
says of it, and looks again from time to time until it is ended. What it set stays
then. It speaks to the cluster with the account of its pod.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return errors.New("--node is empty")
			}
			if every < time.Second {
				return fmt.Errorf("--every %s is less than a second", every)
			}
			client, err := InCluster(os.Getenv)
			if err != nil {
				return err
			}
			k := keeper{patch: client.Patch, node: node, say: func(format string, args ...any) { fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...) }}
			k.look = func(ctx context.Context) (map[string]*string, error) { return wanted(ctx, &flags, remove) }
			return k.run(cmd.Context(), every)
		},
	}
	flags.Add(cmd)
	cmd.Flags().StringVar(&node, "node", os.Getenv("NODE_NAME"), "name of the node (default $NODE_NAME)")
	cmd.Flags().DurationVar(&every, "every", 5*time.Minute, "how often to look at the host again")
	cmd.Flags().BoolVar(&remove, "remove", false, "take the labels away instead")
	return cmd
}

// wanted are the labels that the node should have, nil for one that it should not.
func wanted(ctx context.Context, flags *hostcheck.Flags, remove bool) (map[string]*string, error) {
	if remove {
		return map[string]*string{hostcheck.LabelReady: nil, hostcheck.LabelKVM: nil}, nil
	}
	host, err := flags.Host()
	if err != nil {
		return nil, err
	}
	labels := map[string]*string{}
	for name, value := range hostcheck.Check(ctx, host).Labels {
		labels[name] = &value
	}
	return labels, nil
}

// keeper keeps the labels of one node.
type keeper struct {
	look  func(context.Context) (map[string]*string, error)
	patch func(context.Context, string, map[string]*string) error
	node  string
	say   func(string, ...any)
}

// run looks and patches until the context ends. The host tells nobody of what it
// gains or loses, so it is looked at again; and the labels are set again, since
// somebody may have removed them. An error is said, and is tried to be mended the
// next time.
func (k keeper) run(ctx context.Context, every time.Duration) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	said := ""
	for {
		labels, err := k.look(ctx)
		if err == nil {
			err = k.patch(ctx, k.node, labels)
		}
		now := fmt.Sprintf("node %s: %s", k.node, describe(labels))
		if err != nil {
			now = err.Error()
		}
		if now != said && ctx.Err() == nil {
			k.say("%s", now)
			said = now
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func describe(labels map[string]*string) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if value := labels[name]; value == nil {
			text += name + " removed "
		} else {
			text += name + "=" + *value + " "
		}
	}
	return text
}
