package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/image"
)

// pod is a pod that runs.
type pod struct {
	*bench
	id         string
	config     *cri.PodSandboxConfig
	group      *harness.PodCgroup
	containers int
}

// pod makes a pod without containers, in a cgroup as a kubelet makes it.
func (b *bench) pod(ctx context.Context, handler string) (_ *pod, err error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	b.serial++
	name := fmt.Sprintf("pod-%d", b.serial)
	p := &pod{bench: b}
	if p.group, err = b.c.PodCgroup(name); err != nil {
		return nil, err
	}
	p.config = &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name}, Hostname: name, LogDirectory: b.dir,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    p.group.Path,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	r, err := b.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run pod: %w", err), p.group.Remove())
	}
	p.id = r.GetPodSandboxId()
	return p, nil
}

// container makes a container that sleeps and starts it.
func (p *pod) container(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	p.containers++
	name := fmt.Sprintf("c%d", p.containers)
	c, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: image.One}, LogPath: p.config.GetMetadata().GetName() + "-" + name,
		Command: []string{"sleep", "100000"},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}})
	if err == nil {
		_, err = p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", name, err)
	}
	return nil
}

// remove ends the pod, whatever runs in it.
func (p *pod) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), step)
	defer cancel()
	_, stop := p.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	_, remove := p.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(stop, remove, p.group.Remove())
}

// starts measures how long pods take until all of their containers run, and one more
// container in a pod that runs.
func (b *bench) starts(ctx context.Context) error {
	most := b.counts[len(b.counts)-1]
	table := b.report.Table("Start of a pod", "ms").Draw(figures.Bars, "pod-start", "")
	table.Note("From `RunPodSandbox` until the last container runs; a kubelet starts them one after another, and calls a pod without probes ready then.")
	for run := range b.runs {
		for i, handler := range handlers {
			fmt.Printf("run %d of %d, %s\n", run+1, b.runs, handler)
			row := func(format string, args ...any) func(time.Duration) {
				name := fmt.Sprintf(format, args...)
				against := ""
				if i > 0 {
					against = handlers[0] + ": " + name
				}
				r := table.Row(handler+": "+name, against)
				return func(took time.Duration) { r.Add(float64(took) / float64(time.Millisecond)) }
			}
			begun := time.Now()
			p, err := b.pod(ctx, handler)
			if err != nil {
				return err
			}
			row("the sandbox alone")(time.Since(begun))
			for n := 1; n <= most && err == nil; n++ {
				one := time.Now()
				if err = p.container(ctx); err != nil {
					break
				}
				if n == 2 {
					row("a second container")(time.Since(one))
				}
				for _, count := range b.counts {
					if count == n {
						row("%d containers", n)(time.Since(begun))
					}
				}
			}
			one := time.Now()
			if err = errors.Join(err, p.remove(ctx)); err != nil {
				return err
			}
			row("stop and removal of %d containers", most)(time.Since(one))
		}
	}
	return nil
}
