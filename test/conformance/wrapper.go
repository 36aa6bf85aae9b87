package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
)

// The client tests start the containerd that they find in PATH, with a
// configuration of their own that leaves out what the EROFS snapshotter needs.
// This program, under that name, adds it and becomes the real one.
const wrapped = "containerd"

// containerdVar names the real containerd.
const containerdVar = "EROFSVM_CONTAINERD"

// linkWrapper makes a folder with this program under the name.
func linkWrapper(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	link := filepath.Join(dir, wrapped)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(self, link)
}

// asContainerd does not return, except with an error.
func asContainerd(args []string) error {
	real := os.Getenv(containerdVar)
	if real == "" {
		return errors.New(containerdVar + " is not set")
	}
	// Only the daemon is started with a configuration by its long flag; the
	// subcommands, which print one, get what they were given.
	if i := slices.Index(args, "--config"); i >= 0 && i+1 < len(args) {
		config, err := os.ReadFile(args[i+1])
		if err != nil {
			return err
		}
		more, err := withSnapshotter(config)
		if err != nil {
			return fmt.Errorf("%s: %w", args[i+1], err)
		}
		args = slices.Clone(args)
		args[i+1] += ".erofs"
		if err := os.WriteFile(args[i+1], more, 0o600); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", real, syscall.Exec(real, args, os.Environ()))
}

// withSnapshotter adds to a configuration of containerd, of version 2 or later,
// what the EROFS snapshotter needs to make images that the shim takes. Plugins
// that reach for the host's networks are switched off.
func withSnapshotter(config []byte) ([]byte, error) {
	tree := map[string]any{}
	if err := toml.Unmarshal(config, &tree); err != nil {
		return nil, err
	}
	plugins, _ := tree["plugins"].(map[string]any)
	if plugins == nil {
		plugins = map[string]any{}
		tree["plugins"] = plugins
	}
	plugins["io.containerd.snapshotter.v1.erofs"] = map[string]any{"default_size": "64M"}
	plugins["io.containerd.differ.v1.erofs"] = map[string]any{"mkfs_options": strings.Fields("-T0 --mkfs-time --sort=none")}
	plugins["io.containerd.service.v1.diff-service"] = map[string]any{"default": []string{"erofs", "walking"}}
	tree["disabled_plugins"] = []string{
		"io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
		"io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
	}
	return toml.Marshal(tree)
}
