// Package options reads the runtime options that containerd's clients send with a
// container, or with the start of a shim: which configuration they ask for.
//
// Any goroutine may call it. It keeps nothing; SetLogLevel alone changes the
// process.
package options

import (
	"errors"
	"fmt"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/erofsvm/erofsvm/configs"
)

// Config finds the configuration that containerd's runtime options ask
// for: a file, a text, or none. Options of runc, which clients send unasked,
// say nothing about that and are ignored.
func Config(options *anypb.Any) (configs.Config, error) {
	config, err := loadConfiguration(options)
	if errors.Is(err, configs.ErrInvalid) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return config, err
}

func loadConfiguration(options *anypb.Any) (configs.Config, error) {
	if options == nil || options.GetTypeUrl() == "" || options.MessageIs(&runcoptions.Options{}) {
		return configs.Load("")
	}
	// containerd leaves out the prefix of the type URL, which MessageIs does
	// not mind.
	var o runtimeoptions.Options
	if !options.MessageIs(&o) {
		return configs.Config{}, fmt.Errorf("runtime options of type %s are not understood, use %s: %w",
			options.GetTypeUrl(), o.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := options.UnmarshalTo(&o); err != nil {
		return configs.Config{}, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(o.ConfigBody) > 0 {
		return configs.Parse("ConfigBody", o.ConfigBody)
	}
	return configs.Load(o.ConfigPath)
}

// ShimGroup is the cgroup of the host that containerd's client wants the shim in,
// "" if it has no wish. That is the one option of runc that says something about
// a VM.
func ShimGroup(options *anypb.Any) (string, error) {
	var o runcoptions.Options
	if options == nil || !options.MessageIs(&o) {
		return "", nil
	}
	if err := options.UnmarshalTo(&o); err != nil {
		return "", fmt.Errorf("options of runc: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return o.ShimCgroup, nil
}

// SetLogLevel makes the log of this process as talkative as the configuration
// says, but never less than containerd asked for with -debug.
func SetLogLevel(name string) error {
	level, err := logrus.ParseLevel(name)
	if err != nil {
		return fmt.Errorf("log.level: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if level > logrus.GetLevel() {
		logrus.SetLevel(level)
	}
	return nil
}
