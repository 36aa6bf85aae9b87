package truth

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// allocated is how much room a file takes on the host, in bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// TestWhatIsDeletedInTheGuestIsFreeOnTheHost, on both kinds of disk.
func TestWhatIsDeletedInTheGuestIsFreeOnTheHost(t *testing.T) {
	for _, driver := range []string{"virtio-blk", "virtio-scsi"} {
		t.Run(driver, func(t *testing.T) {
			m := startMachine(t, func(c harness.ShimConfig) { c.Set("hypervisor", "block_driver", driver) })
			image := m.image(t)
			mounts := layers.Active(layers.Upper{Image: image}, layers.Lowers(m.chain.plain[0])...)
			before := allocated(t, image)
			m.run(t, mounts, "write", "30000000", "/big")
			full := allocated(t, image)
			if full < before+28<<20 {
				t.Errorf("with 30 MB written the image takes %d bytes, %d before", full, before)
			}
			m.run(t, mounts, "remove", "/big")
			// What stays is what the filesystem needed for itself meanwhile.
			if after := allocated(t, image); after > before+4<<20 {
				t.Errorf("with the file removed the image takes %d bytes, %d with it, %d before", after, full, before)
			}
		})
	}
}

// TestDiscardCanBeSwitchedOff: the image then keeps what it once needed.
func TestDiscardCanBeSwitchedOff(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("rootfs", "discard", false) })
	image := m.image(t)
	mounts := layers.Active(layers.Upper{Image: image}, layers.Lowers(m.chain.plain[0])...)
	m.run(t, mounts, "write", "20000000", "/big")
	full := allocated(t, image)
	m.run(t, mounts, "remove", "/big")
	if after := allocated(t, image); after < full-1<<20 {
		t.Errorf("the image shrank from %d to %d bytes", full, after)
	}
}

// TestFullWritableLayerIsENOSPC: nothing but the write fails.
func TestFullWritableLayerIsENOSPC(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("rootfs", "memory_upper_mib", 32) })
	for name, upper := range map[string]layers.Upper{
		"image":  {Image: m.image(t)},
		"memory": {HostDir: t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			mounts := layers.Active(upper, layers.Lowers(m.chain.plain[0])...)
			result, err := m.Run(within(t, step), mounts, "/"+inGuest, "fill", "/big")
			if err != nil {
				t.Fatal(err)
			}
			if result.Code != 1 || !strings.Contains(result.Stdout, "/big ENOSPC") {
				t.Errorf("exit code %d: %s", result.Code, result.Stdout)
			}
			m.run(t, layers.View(layers.Lowers(m.chain.plain[0])...), "read", "/etc/kept")
		})
	}
}

// TestMemoryForAWritableLayerCanBeDenied: the error says what to set.
func TestMemoryForAWritableLayerCanBeDenied(t *testing.T) {
	m := startMachine(t, func(c harness.ShimConfig) { c.Set("rootfs", "memory_upper_mib", 0) })
	_, err := m.Create(within(t, step), layers.Active(layers.Upper{HostDir: t.TempDir()}, layers.Lowers(m.chain.plain[0])...), "/"+inGuest, "wait")
	if err == nil || !strings.Contains(err.Error(), "default_size") || !strings.Contains(err.Error(), "memory_upper_mib") {
		t.Errorf("want an error about default_size and memory_upper_mib: %v", err)
	}
}

// TestWritesAreThereForTheNextContainer: the end of a container writes all of
// its layer back, and a layer that has been used is used again.
func TestWritesAreThereForTheNextContainer(t *testing.T) {
	m := startMachine(t, nil)
	mounts := layers.Active(layers.Upper{Image: m.image(t)}, layers.Lowers(m.chain.plain[:3]...)...)
	m.run(t, mounts, "write", "1000003", "/etc/written")
	first := m.run(t, mounts, "read", "/etc/written")
	if !strings.HasPrefix(first, "/etc/written 1000003 ") {
		t.Errorf("read: %s", first)
	}
	m.run(t, mounts, "remove", "/etc/written", "/etc/kept")
	result, err := m.Run(within(t, step), mounts, "/"+inGuest, "read", "/etc/written", "/etc/kept")
	if err != nil {
		t.Fatal(err)
	}
	if want := "/etc/written ENOENT\n/etc/kept ENOENT\n"; result.Stdout != want {
		t.Errorf("read: %s, want %s", result.Stdout, want)
	}
}

// TestContainersOfOneImageStandSideBySide: layers are shared, writable layers
// are not, and the end of one leaves the others alone.
func TestContainersOfOneImageStandSideBySide(t *testing.T) {
	m := startMachine(t, nil)
	const n = 6
	var all sync.WaitGroup
	outputs, errs := make([]string, n), make([]error, n)
	for i := range n {
		lowers := layers.Lowers(m.chain.plain[:3]...)
		if i%2 == 1 {
			lowers = m.chain.protected[:3]
		}
		mounts := layers.Active(layers.Upper{Image: m.image(t)}, lowers...)
		all.Go(func() {
			result, err := m.Run(within(t, 2*step), mounts, "/"+inGuest, "write", "2000000", "/etc/kept")
			if err == nil {
				result, err = m.Run(within(t, 2*step), mounts, "/"+inGuest, "read", "/etc/kept", "/size/70001")
			}
			outputs[i], errs[i] = result.Stdout, err
		})
	}
	all.Wait()
	for i := range n {
		if errs[i] != nil || outputs[i] != outputs[0] || !strings.HasPrefix(outputs[i], "/etc/kept 2000000 ") {
			t.Errorf("container %d: %v\n%s", i, errs[i], outputs[i])
		}
	}
}

// TestLayerThatIsReplacedStaysWhatItWas: whoever renames another file over a
// layer while a container runs changes nothing that the container sees.
func TestLayerThatIsReplacedStaysWhatItWas(t *testing.T) {
	m := startMachine(t, nil)
	dir := t.TempDir()
	copies, err := layers.Copies(dir, m.chain.plain[:3]...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.Create(within(t, step), layers.Active(layers.Upper{Image: m.image(t)}, layers.Lowers(copies...)...), "/"+inGuest, "again", "/size/70001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Delete(within(t, step)); err != nil {
			t.Error(err)
		}
	}()
	for _, path := range copies {
		if err := os.WriteFile(path+".new", make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Start(within(t, step)); err != nil {
		t.Fatal(err)
	}
	// A round or two past the page cache; there is no event for them.
	waitUntil(t, func() bool { return strings.Contains(c.Stdout(), "reading") })
	if err := c.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	result, err := c.Wait(within(t, step))
	if err != nil {
		t.Fatal(err)
	}
	if result.Code != 0 || !strings.Contains(result.Stdout, "rounds") {
		t.Errorf("exit code %d: %s%s", result.Code, result.Stdout, result.Stderr)
	}
}

// waitUntil waits for what nothing announces.
func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	ctx := within(t, step)
	for !ok() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}
