package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is a disk as the kernel shows it. One of PCIPath and SCSI is set.
type disk struct {
	Name     string `json:"name"`
	Serial   string `json:"serial"`
	PCIPath  string `json:"pci_path"`
	SCSI     string `json:"scsi"`
	Bytes    int64  `json:"bytes"`
	ReadOnly bool   `json:"read_only"`
}

const (
	// quiet is how long nothing may come or go before waitForDisks looks for what
	// was not announced, in seconds.
	quiet = 5
	// looks is how often it looks, without anything having come, before it gives up.
	looks = 6
)

// waitForDisks returns the disks once there are as many as count says, or those
// that there are when nothing has changed for long. What comes is announced by
// the kernel (lib/kobject_uevent.c). Of many disks that come to a SCSI bus at once
// the kernel can miss one; the agent looks for each by its address, and this looks
// at all when nothing comes any more.
func waitForDisks(count string) ([]disk, error) {
	want, err := strconv.Atoi(count)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: quiet}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	for looked := 0; ; {
		found, err := disks()
		if err == nil && len(found) == want {
			if found, err = announced(fd, found); err == nil && len(found) == want {
				return found, nil
			}
		}
		if err != nil || looked == looks {
			return found, err
		}
		switch _, err := unix.Read(fd, buf); err {
		case nil, unix.ENOBUFS:
			looked = 0
		case unix.EINTR:
		case unix.EAGAIN:
			if err := scanSCSI(); err != nil {
				return nil, err
			}
			looked++
		default:
			return nil, err
		}
	}
}

// announced returns what these disks are once the kernel is done with each. It shows
// a disk in /sys before it has looked for partitions, and a SCSI disk says meanwhile
// that it can be written to, because looking reads its write protection once more
// (drivers/scsi/sd.c, sd_read_write_protect_flag). Until the disk is announced
// nothing else is told of it (block/genhd.c, add_disk_fwnode), what is asked for here
// included: so whatever is told of it says that it is done.
func announced(fd int, found []disk) ([]disk, error) {
	waiting := map[string]bool{}
	for _, d := range found {
		err := os.WriteFile(filepath.Join("/sys/block", d.Name, "uevent"), []byte("change"), 0)
		if err != nil && !gone(err) {
			return nil, err
		}
		if err == nil {
			waiting[d.Name] = true
		}
	}
	buf := make([]byte, 8<<10)
	for len(waiting) > 0 {
		n, err := unix.Read(fd, buf)
		switch err {
		case nil:
			what, _, _ := strings.Cut(string(buf[:n]), "\x00") // add@/devices/…/block/sda
			if !strings.HasPrefix(what, "remove@") {
				delete(waiting, filepath.Base(what))
			}
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			return nil, nil // for waitForDisks to go on
		default:
			return nil, err
		}
	}
	return disks()
}

// gone says that a disk is on its way in or out.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// scanSCSI looks at every place of every SCSI bus (drivers/scsi/scsi_sysfs.c).
func scanSCSI() error {
	hosts, err := filepath.Glob("/sys/class/scsi_host/host*/scan")
	if err != nil {
		return err
	}
	for _, host := range hosts {
		if err := os.WriteFile(host, []byte("- - -"), 0); err != nil {
			return err
		}
	}
	return nil
}

func disks() ([]disk, error) {
	found := []disk{}
	for _, pattern := range []string{"/sys/block/vd*", "/sys/block/sd*"} {
		blocks, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			d, err := look(b)
			if gone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			found = append(found, d)
		}
	}
	return found, nil
}

// look reads what /sys says about the disk at b.
func look(b string) (disk, error) {
	d := disk{Name: filepath.Base(b)}
	var err error
	attribute := func(name string) string {
		var text []byte
		if err == nil {
			text, err = os.ReadFile(filepath.Join(b, name))
		}
		return strings.TrimSpace(string(text))
	}
	if strings.HasPrefix(d.Name, "vd") {
		d.Serial = attribute("serial")
	} else if page := attribute("device/vpd_pg80"); len(page) > 4 {
		d.Serial = page[4:] // behind the page's header
	} else if err == nil {
		return d, os.ErrNotExist
	}
	d.ReadOnly = attribute("ro") == "1"
	sectors := attribute("size")
	if err != nil {
		return d, err
	}
	n, err := strconv.ParseInt(sectors, 10, 64)
	if err != nil {
		return d, err
	}
	if d.Bytes = n * 512; n == 0 {
		return d, os.ErrNotExist // not read yet
	}
	path, err := filepath.EvalSymlinks(b)
	if err != nil {
		return d, err
	}
	if d.SCSI = scsiAddress(path); d.SCSI == "" {
		d.PCIPath = pciPath(path)
	}
	return d, nil
}

// pciPath turns …/pci0000:00/0000:00:02.0/0000:01:05.0/virtio3/block/vda into 02/05.
func pciPath(path string) string {
	var slots []string
	for element := range strings.SplitSeq(path, "/") {
		var domain, bus, slot, function int
		if n, _ := fmt.Sscanf(element, "%x:%x:%x.%x", &domain, &bus, &slot, &function); n == 4 {
			slots = append(slots, fmt.Sprintf("%02x", slot))
		}
	}
	return strings.Join(slots, "/")
}

// scsiAddress turns …/host0/target0:0:7/0:0:7:0/block/sda into 7:0.
func scsiAddress(path string) string {
	element := filepath.Base(filepath.Dir(filepath.Dir(path)))
	var host, channel, id, lun int
	if n, _ := fmt.Sscanf(element, "%d:%d:%d:%d", &host, &channel, &id, &lun); n != 4 || !strings.Contains(path, "/target") {
		return ""
	}
	return fmt.Sprintf("%d:%d", id, lun)
}
