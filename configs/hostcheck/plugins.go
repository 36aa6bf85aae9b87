package hostcheck

import (
	"context"
	"fmt"
	"strings"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// pluginFilters are the plugins that a pod needs of containerd.
var pluginFilters = []string{
	"type==io.containerd.snapshotter.v1,id==erofs",
	"type==io.containerd.differ.v1,id==erofs",
}

// plugins asks a containerd that runs. One that does not, cannot be asked, and is
// no reason against the host.
func (h Host) plugins(ctx context.Context) Finding {
	if h.Socket == "" {
		return Finding{}
	}
	f := Finding{Name: "plugins", Kind: Part}
	socket, err := h.Root.Real(h.Socket)
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	states, err := loadedPlugins(ctx, socket)
	switch {
	case err != nil:
		f.Detail = fmt.Sprintf("containerd at %s: %v", h.Socket, err)
	case len(states) < len(pluginFilters):
		f.Detail = "containerd was built without the EROFS snapshotter or differ"
	default:
		f.OK = true
		var all []string
		for name, wrong := range states {
			if wrong != "" {
				f.OK = false
				all = append(all, name+" is not loaded: "+wrong)
			}
		}
		f.Detail = strings.Join(all, "; ")
		if f.OK {
			f.Detail = "containerd has loaded the EROFS snapshotter and differ"
		}
	}
	return f
}

// loadedPlugins returns, for each of the plugins, why it is not loaded, "" if it
// is.
func loadedPlugins(ctx context.Context, socket string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{Filters: pluginFilters})
	if err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, p := range answer.Plugins {
		states[p.Type+"."+p.ID] = strings.TrimSpace(p.InitErr.GetMessage())
	}
	return states, nil
}
