package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient"
	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/storage"
	"github.com/erofsvm/erofsvm/guest/verity"
)

// Slots of the bridge that the disks of these tests get; the first three are
// taken.
const (
	slotPartitions = 4
	slotFlipped    = 5
	slotMany       = 6
)

// testLayers has layers in partitions, behind hash trees and at a SCSI
// controller, with upper layers in memory.
func testLayers(t *testing.T, g *guest) {
	t.Run("layers in partitions, one of them protected", func(t *testing.T) { testPartitions(t, g) })
	t.Run("a flipped bit is an I/O error", func(t *testing.T) { testFlippedBit(t, g) })
	t.Run("as many protected layers as a disk has partitions", func(t *testing.T) { testManyProtected(t, g) })
	t.Run("disks of a SCSI controller", func(t *testing.T) { testSCSI(t, g) })
	t.Run("read-only from several layers", func(t *testing.T) {
		both := []*pb.Storage{lowerStorage("ros", "08/02"), lowerStorage("ros", "08/03")}
		if out, stderr, status := g.runContainer(t, "ros", both, containerSpec("ros", "cat", "/who", "/b")); status != 0 || out != "upper lower\nfrom 2\n" {
			t.Errorf("status %d, %q, %q", status, out, stderr)
		}
		if _, stderr, status := g.runContainer(t, "ros", both, containerSpec("ros", "write", "/x", "y")); status != 1 || !strings.Contains(stderr, "read-only file system") {
			t.Errorf("status %d, %q", status, stderr)
		}
	})
}

func memoryStorage(id string) *pb.Storage {
	return &pb.Storage{Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: storage.RootfsPath(storage.Base, id), Options: []string{
		"size=1048576", "mode=0755", "X-kata.overlay-upper", "X-kata.multi-layer=true",
		"X-kata.mkdir.path={{ mount 0 }}/upper:0755", "X-kata.mkdir.path={{ mount 0 }}/work:0755",
	}}
}

func partitionStorage(id string, slot, number int) *pb.Storage {
	s := lowerStorage(id, fmt.Sprintf("08/%02x", slot))
	s.Options = append(s.Options, "X-kata.gpt-partitioned=true", fmt.Sprintf("X-kata.partition-number=%d", number))
	return s
}

// hashTree is what the host knows of a protected layer.
type hashTree struct {
	root   string
	offset int
}

func (h hashTree) protect(s *pb.Storage) *pb.Storage {
	s.Options = append(s.Options, "X-kata.dmverity-enabled=true",
		"X-kata.dmverity.roothash="+h.root, fmt.Sprintf("X-kata.dmverity.hashoffset=%d", h.offset))
	return s
}

func testPartitions(t *testing.T, g *guest) {
	top := readFile(t, makeLower(t, map[string]string{"who": "protected\n", "a": "1\n"}, true))
	top, tree := withHashTree(top)
	bottom := readFile(t, makeLower(t, map[string]string{"who": "not\n", "b": "2\n"}, false))
	g.plug(t, slotPartitions, writeFile(t, withPartitions(top, bottom)), true)

	layers := func(id string, tree hashTree) []*pb.Storage {
		return []*pb.Storage{memoryStorage(id), tree.protect(partitionStorage(id, slotPartitions, 1)), partitionStorage(id, slotPartitions, 2)}
	}
	wrong := hashTree{root: strings.Repeat("5a", sha256.Size), offset: tree.offset}
	request := &pb.CreateContainerRequest{ContainerId: "wrong", Storages: layers("wrong", wrong), OCI: containerSpec("wrong", "exit", "0")}
	err := g.client.CreateContainer(t.Context(), request)
	if !errors.Is(err, errdefs.ErrDataLoss) || !strings.Contains(err.Error(), verity.ErrMismatch.Error()) || !strings.Contains(err.Error(), "08/04 partition 1") {
		t.Errorf("a wrong root hash: %v", err)
	}
	elsewhere := hashTree{root: tree.root, offset: tree.offset + 4096}
	request = &pb.CreateContainerRequest{ContainerId: "wrong", Storages: layers("wrong", elsewhere), OCI: containerSpec("wrong", "exit", "0")}
	if err := g.client.CreateContainer(t.Context(), request); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "superblock") {
		t.Errorf("a wrong hash offset: %v", err)
	}
	for range 2 { // the second time without loading modules
		began := time.Now()
		out, stderr, status := g.runContainer(t, "parts", layers("parts", tree), containerSpec("parts", "cat", "/who", "/a", "/b"))
		if out != "protected\n1\n2\n" || status != 0 {
			t.Errorf("status %d, %q, %q", status, out, stderr)
		}
		t.Logf("create to remove: %v", time.Since(began))
	}
	// Nothing of the one that failed is left in the way of this one.
	if out, stderr, status := g.runContainer(t, "wrong", layers("wrong", tree), containerSpec("wrong", "cat", "/who")); out != "protected\n" || status != 0 {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	_, stderr, status := g.runContainer(t, "full", layers("full", tree), containerSpec("full", "fill", "/large", "2097152"))
	if status != 1 || !strings.Contains(stderr, "no space left on device") {
		t.Errorf("more than the memory that it may take: status %d, %q", status, stderr)
	}
}

func testFlippedBit(t *testing.T, g *guest) {
	const block = 4096
	content := strings.Repeat("flip me ", 2*block/8)
	layer, tree := withHashTree(readFile(t, makeLower(t, map[string]string{"flipped": content, "sound": "sound\n"}, true)))
	at := bytes.Index(layer, []byte(content))
	if at < 0 || at%block != 0 {
		t.Fatalf("the content of the file is at %d", at)
	}
	layer[at+block] ^= 1 // the second block, which opening the layer does not read
	g.plug(t, slotFlipped, writeFile(t, layer), true)

	layers := []*pb.Storage{tree.protect(lowerStorage("flip", "08/05"))}
	if out, stderr, status := g.runContainer(t, "flip", layers, containerSpec("flip", "cat", "/sound")); out != "sound\n" || status != 0 {
		t.Errorf("what is sound: status %d, %q, %q", status, out, stderr)
	}
	_, stderr, status := g.runContainer(t, "flip", layers, containerSpec("flip", "cat", "/flipped"))
	if status != 1 || !strings.Contains(stderr, "input/output error") {
		t.Errorf("what is not: status %d, %q", status, stderr)
	}
	for line := range strings.Lines(g.log(t)) {
		var said struct {
			Level, Container, Disk string
			Block                  *int // not there if it was found by its state
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Errorf("%s: %v", line, err)
		} else if said.Level == "ERROR" && said.Container == "flip" && said.Disk == "08/05" {
			if want := at/block + 1; said.Block != nil && *said.Block != want {
				t.Errorf("it names block %d, want %d", *said.Block, want)
			}
			return
		}
	}
	t.Error("the log does not name the layer")
}

func testManyProtected(t *testing.T, g *guest) {
	const layers = 128
	var images [][]byte
	storages := []*pb.Storage{memoryStorage("many")}
	var names []string
	want := ""
	for i := range layers {
		name := fmt.Sprintf("f%d", i)
		image, tree := withHashTree(readFile(t, makeLower(t, map[string]string{name: name + "\n", "who": name + "\n"}, i == layers-1)))
		images = append(images, image)
		storages = append(storages, tree.protect(partitionStorage("many", slotMany, i+1)))
		names, want = append(names, "/"+name), want+name+"\n"
	}
	g.plug(t, slotMany, writeFile(t, withPartitions(images...)), true)
	began := time.Now()
	out, stderr, status := g.runContainer(t, "many", storages, containerSpec("many", append([]string{"cat", "/who"}, names...)...))
	if out != "f0\n"+want || status != 0 {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	t.Logf("create to remove: %v", time.Since(began))
}

// testSCSI plugs one disk before the driver of the controller is there, and one
// while it is awaited.
func testSCSI(t *testing.T, g *guest) {
	onSCSI := func(s *pb.Storage, source string) *pb.Storage {
		s.Driver, s.Source = "scsi", source
		return s
	}
	g.plugSCSI(t, 0, 1, makeLower(t, map[string]string{"who": "first unit\n"}, true), true)
	created := make(chan error, 1)
	go func() {
		created <- g.client.CreateContainer(t.Context(), &pb.CreateContainerRequest{
			ContainerId: "scsi",
			Storages:    []*pb.Storage{onSCSI(upperStorage("scsi", ""), "3:0"), onSCSI(lowerStorage("scsi", ""), "0:1")},
			OCI:         containerSpec("scsi", "cat", "/who"),
		})
	}()
	// By then the driver is most likely there, and waits for an event.
	later := time.NewTimer(time.Second)
	select {
	case err := <-created:
		t.Fatalf("created without its upper layer: %v", err)
	case <-later.C:
	}
	g.plugSCSI(t, 3, 0, makeUpper(t), false)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	if err := g.client.StartContainer(t.Context(), "scsi"); err != nil {
		t.Fatal(err)
	}
	if out, stderr, status := g.collect(t, agentclient.Process{Container: "scsi"}); out != "first unit\n" || status != 0 {
		t.Errorf("status %d, %q, %q", status, out, stderr)
	}
	if err := g.client.RemoveContainer(t.Context(), "scsi"); err != nil {
		t.Error(err)
	}
}

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// withHashTree appends what veritysetup(8) writes for a layer, salted, of blocks
// of 4 KiB.
func withHashTree(layer []byte) ([]byte, hashTree) {
	const block = 4096
	salt := []byte("salt")
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&(block-1))...) }
	layer = pad(bytes.Clone(layer))
	super := make([]byte, block)
	copy(super, "verity\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00")
	copy(super[32:], "sha256")
	binary.LittleEndian.PutUint32(super[64:], block)
	binary.LittleEndian.PutUint32(super[68:], block)
	binary.LittleEndian.PutUint64(super[72:], uint64(len(layer)/block))
	binary.LittleEndian.PutUint16(super[80:], uint16(len(salt)))
	copy(super[88:], salt)

	// From the data up; a layer of one block has no level at all.
	top, tree := layer, []byte(nil)
	for len(top) > block {
		var hashes []byte
		for b := range slices.Chunk(top, block) {
			sum := sha256.Sum256(slices.Concat(salt, b))
			hashes = append(hashes, sum[:]...)
		}
		top = pad(hashes)
		tree = slices.Concat(top, tree) // on the disk the uppermost comes first
	}
	root := sha256.Sum256(slices.Concat(salt, top))
	return slices.Concat(layer, super, tree), hashTree{fmt.Sprintf("%x", root), len(layer)}
}

// withPartitions makes a disk with a GPT, a partition for each layer, up to 128.
func withPartitions(layers ...[]byte) []byte {
	const sector, align, entries = 512, 64, 128
	table := make([]byte, entries*128)
	var data []byte
	next := uint64(align)
	le := binary.LittleEndian
	for i, layer := range layers {
		layer = append(bytes.Clone(layer), make([]byte, -len(layer)&(align*sector-1))...)
		entry := table[i*128:]
		copy(entry, "any type but 0s.")
		copy(entry[16:], fmt.Sprintf("partition %06d", i))
		le.PutUint64(entry[32:], next)
		next += uint64(len(layer) / sector)
		le.PutUint64(entry[40:], next-1)
		data = append(data, layer...)
	}
	head := make([]byte, align*sector)
	head[446+4], head[510], head[511] = 0xee, 0x55, 0xaa // a protective MBR
	le.PutUint32(head[446+8:], 1)
	le.PutUint32(head[446+12:], uint32(next))
	header := head[sector:]
	copy(header, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	for offset, value := range map[int]uint64{24: 1, 32: next, 40: align, 48: next - 1, 72: 2} {
		le.PutUint64(header[offset:], value) // where it is, its copy, the partitions, the table
	}
	le.PutUint32(header[80:], entries)
	le.PutUint32(header[84:], 128)
	le.PutUint32(header[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header[:92]))
	copy(head[2*sector:], table)
	return slices.Concat(head, data, make([]byte, align*sector))
}
