package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
	"github.com/erofsvm/erofsvm/network"
	"github.com/erofsvm/erofsvm/runtime/hostgroup"
)

// recordName is the file in the bundle from which a later process finds what a
// sandbox has on the host. It lies with the bundle because that is all that
// containerd gives to `delete`.
const recordName = "erofsvm.json"

// record is the content of that file.
type record struct {
	Dir string       `json:"dir"`          // the sandbox's directory
	VM  *qemu.Record `json:"vm,omitempty"` // nil until the VM's processes exist
	// NetNS is the path of the network namespace that has the devices of the VM,
	// "" for one that goes with the VM.
	NetNS string `json:"netns,omitempty"`
	// Cgroup is that of the host that was made for the sandbox, "" if none was.
	Cgroup string `json:"cgroup,omitempty"`
}

// writeRecord replaces the bundle's record atomically. It is read after a crash
// of this process and not of the host, so it is not synced to disk.
func writeRecord(bundle string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of the sandbox: %w", err)
	}
	return replaceFile(filepath.Join(bundle, recordName), data)
}

func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

func removeRecord(bundle string) error {
	err := os.Remove(filepath.Join(bundle, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Cleanup removes what the sandbox of a bundle left on the host when its shim
// did not get to do so: the VM's processes, its cgroup, its sockets, its devices in the
// pod's network namespace, the sandbox's directory. It returns the pid that the VM
// had, 0 if there was none. A bundle without a record, that of a member of a pod
// or one already cleaned, is no error and touches nothing.
func Cleanup(ctx context.Context, bundle string) (pid int, err error) {
	data, err := os.ReadFile(filepath.Join(bundle, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("record of the sandbox: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return 0, fmt.Errorf("record of the sandbox %s: %w", filepath.Join(bundle, recordName), err)
	}
	var errs []error
	if r.VM != nil {
		pid = r.VM.QEMU.Pid
		if err := qemu.Cleanup(ctx, *r.VM); err != nil {
			errs = append(errs, fmt.Errorf("end the virtual machine: %w", err))
		}
	}
	if r.Cgroup != "" { // empty by now
		if err := hostgroup.Remove(ctx, r.Cgroup); err != nil {
			errs = append(errs, err)
		}
	}
	if r.NetNS != "" {
		if err := network.Cleanup(r.NetNS); err != nil {
			errs = append(errs, err)
		}
	}
	if r.Dir != "" {
		if err := removeSandboxDir(r.Dir); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, removeRecord(bundle))
	}
	return pid, errors.Join(errs...)
}
