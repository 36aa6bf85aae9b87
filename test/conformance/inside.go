package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"

	"github.com/erofsvm/erofsvm/test/conformance/registry"
	"github.com/erofsvm/erofsvm/test/harness"
)

// insideArg is the first argument of the process that runs in a place.
const insideArg = "inside"

// inside serves images and prepares the containerd that the tests start, if it is
// to, runs the command behind "--", and returns its exit status.
func inside(args []string) int {
	flags := flag.NewFlagSet(insideArg, flag.ContinueOnError)
	images := flags.String("images", "", "OCI archive of busybox; serve images that are made of it")
	socket := flags.String("containerd", "", "socket of a containerd to come; prepare its namespaces")
	err := flags.Parse(args)
	if err == nil {
		err = serveAndRun(*images, *socket, flags.Args())
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveAndRun(archive, socket string, command []string) error {
	if len(command) == 0 {
		return errors.New("no command")
	}
	if archive != "" {
		stop, err := serve(archive)
		if err != nil {
			return err
		}
		defer stop()
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	if socket != "" {
		go func() {
			if err := prepareNamespaces(socket); err != nil {
				fmt.Fprintf(os.Stderr, "prepare containerd's namespaces: %v\n", err)
			}
		}()
	}
	return cmd.Wait()
}

// ownNamespaces are those of tests that take one for themselves and run a
// container in it. They take the default snapshotter, which is the namespace's
// only if its label says so; that of all others is set by the tests.
var ownNamespaces = []string{
	"testing-TestRegressionIssue4769", "testing-TestRegressionIssue6429", strings.Repeat("n", 76), // of TestShimSockLength
}

// prepareNamespaces waits for containerd to serve.
func prepareNamespaces(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.New(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.IsServing(ctx); err != nil {
		return err
	}
	for _, name := range ownNamespaces {
		labels := map[string]string{defaults.DefaultSnapshotterNSLabel: harness.Snapshotter}
		if err := c.NamespaceService().Create(ctx, name, labels); err != nil {
			return err
		}
	}
	return nil
}

// serve serves the images and makes the processes to come trust the server.
func serve(archive string) (stop func(), err error) {
	images, err := registry.Images(archive)
	if err != nil {
		return nil, err
	}
	server, err := registry.Start("127.0.0.1:443", registry.Hosts)
	if err != nil {
		return nil, err
	}
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Stop(ctx) // the place ends with it
	}
	for name, index := range images {
		if err := server.Put(name, index); err != nil {
			stop()
			return nil, err
		}
	}
	trusted := filepath.Join(os.TempDir(), "ca.pem")
	err = os.WriteFile(trusted, server.CA(), 0o644)
	if err == nil {
		err = os.Setenv("SSL_CERT_FILE", trusted)
	}
	if err != nil {
		stop()
	}
	return stop, err
}
