package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/agentclient/streamwire"
	"github.com/erofsvm/erofsvm/guest/container"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/token"
)

// machine is what of the guest's hardware can be plugged.
type machine struct {
	sys string // where sysfs is mounted
}

func (a *agent) GetGuestDetails(_ context.Context, r *pb.GuestDetailsRequest) (*pb.GuestDetailsResponse, error) {
	out := &pb.GuestDetailsResponse{AgentDetails: &pb.AgentDetails{
		Version:         Version,
		InitDaemon:      os.Getpid() == 1,
		StorageHandlers: storage.Drivers(),
		SupportsSeccomp: container.SupportsSeccomp,
		ExtraFeatures:   []string{streamwire.Feature, streamwire.FilesFeature, streamwire.CopiesFeature, streamwire.PortsFeature},
	}}
	if r.GetMemBlockSize() {
		size, err := a.machine.memoryBlock()
		if err != nil {
			return nil, err
		}
		out.MemBlockSizeBytes = size
	}
	if r.GetMemHotplugProbe() {
		_, err := os.Stat(filepath.Join(a.machine.sys, "devices/system/memory/probe"))
		out.SupportMemHotplugProbe = err == nil
	}
	return out, nil
}

// memoryBlock is the size of the pieces in which memory comes and goes, in
// bytes, 0 for a kernel that cannot do that.
func (m machine) memoryBlock() (uint64, error) {
	text, err := os.ReadFile(filepath.Join(m.sys, "devices/system/memory/block_size_bytes"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	size, err := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("size of a block of memory: %w", err)
	}
	return size, nil
}

const (
	// maxOnline bounds the wait for plugged hardware whose caller set no deadline.
	maxOnline = 10 * time.Second
	// onlineAgain is how often the wait looks. A processor takes the kernel some
	// ten milliseconds from the plug to the file, and that a few times in the
	// life of a guest.
	onlineAgain = 10 * time.Millisecond
)

// OnlineCPUMem brings processors and memory online that were plugged in. With
// nb_cpus and wait it waits until it has brought so many online itself.
func (a *agent) OnlineCPUMem(ctx context.Context, r *pb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	if !r.GetCpuOnly() {
		if err := a.machine.onlineMemory(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := ahead(ctx, maxOnline)
	defer cancel()
	tick := time.NewTicker(onlineAgain)
	defer tick.Stop()
	for came := 0; ; {
		n, err := a.machine.onlineCPUs()
		if err != nil {
			return nil, err
		}
		came += n
		if !r.GetWait() || came >= int(r.GetNbCpus()) {
			return empty, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d processors came online: %w", came, r.GetNbCpus(), ctx.Err())
		}
	}
}

// onlineCPUs brings every processor online that is not, and returns how many.
// The first one may have no file for it, as it can never be offline.
func (m machine) onlineCPUs() (int, error) {
	return online(filepath.Join(m.sys, "devices/system/cpu"), "cpu", "online", "0", "1")
}

// onlineMemory brings every block of memory online that is not, and has the
// kernel do that with those that are still to come.
func (m machine) onlineMemory() error {
	dir := filepath.Join(m.sys, "devices/system/memory")
	// Without the file the kernel cannot plug memory, and there is none to come.
	if err := write(filepath.Join(dir, "auto_online_blocks"), "online"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bring memory online: %w", err)
	}
	_, err := online(dir, "memory", "state", "offline", "online")
	return err
}

// online writes on into a file of each directory below dir, named kind and a number,
// where it says off.
func online(dir, kind, file, off, on string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	came := 0
	for _, entry := range entries {
		number, of := strings.CutPrefix(entry.Name(), kind)
		if !of || !token.Of(number, 1, unix.NAME_MAX, token.Digit) {
			continue
		}
		path := filepath.Join(dir, entry.Name(), file)
		text, err := os.ReadFile(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return came, err
		case strings.TrimSpace(string(text)) != off:
			continue
		}
		err = write(path, on)
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, os.ErrNotExist):
			continue // it is on its way, in or out
		case err != nil:
			return came, fmt.Errorf("bring %s online: %w", entry.Name(), err)
		}
		came++
	}
	return came, nil
}

// write writes into a file that is there.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
