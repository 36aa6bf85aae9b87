package vmdk_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/rootfs/vmdk"
)

// pattern is n bytes that differ from those of any other seed.
func pattern(seed string, n int) []byte {
	var out bytes.Buffer
	for i := 0; out.Len() < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", seed, i))
		out.Write(sum[:])
	}
	return out.Bytes()[:n]
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

func put(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o444); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestQEMUReadsTheExtentsByteForByte has read-only files with tails, offsets
// and the oddest names that are allowed.
func TestQEMUReadsTheExtentsByteForByte(t *testing.T) { eachQEMU(t, readsByteForByte) }

func readsByteForByte(t *testing.T, bin string) {
	qemuImg, dir := bin+"/qemu-img", t.TempDir()
	var extents []vmdk.Extent
	var want []byte
	for i, name := range []string{
		"plain", "with space ", "colon:and,comma=", "Ümlaut", "%s%n", "RW 1 FLAT", "createType=", "CID=1 parentCID=2",
		strings.Repeat("long-", 40),
	} {
		data := pattern(name, 512*(20+i))
		e := vmdk.Extent{Path: put(t, dir, name, data), Sectors: int64(i + 2), Offset: int64(i)}
		extents = append(extents, e)
		want = append(want, data[e.Offset*512:(e.Offset+e.Sectors)*512]...)
	}
	path, err := vmdk.Write(dir, "layers.vmdk", extents)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(dir, "raw")
	run(t, qemuImg, "convert", "-f", "vmdk", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("QEMU reads %d bytes, want %d; or they differ", len(got), len(want))
	}
}

// TestQEMUReadsPast2And4GiB has sparse files with a mark on either side of
// where a number of 31 or 32 bits would end, and where a split extent does.
func TestQEMUReadsPast2And4GiB(t *testing.T) { eachQEMU(t, readsPast2And4GiB) }

func readsPast2And4GiB(t *testing.T, bin string) {
	qemuIO, dir := bin+"/qemu-io", t.TempDir()
	const size = 5 << 30
	big := filepath.Join(dir, "big")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	marks := map[int64]byte{0: 1, 2<<30 - 512: 2, 2 << 30: 3, 4<<30 - 512: 4, 4 << 30: 5, size - 512: 6}
	for at, mark := range marks {
		if _, err := f.WriteAt(bytes.Repeat([]byte{mark}, 512), at); err != nil {
			t.Fatal(err)
		}
	}
	first := put(t, dir, "first", bytes.Repeat([]byte{9}, 4096))
	path, err := vmdk.Write(dir, "layers.vmdk", []vmdk.Extent{
		{Path: first, Sectors: 8},
		{Path: big, Sectors: size / 512},
		{Path: big, Sectors: 1, Offset: 4 << 30 / 512},
	})
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-r", "-f", "vmdk", "-c", "read -P 9 0 4096", "-c", fmt.Sprintf("read -P 5 %d 512", 4096+int64(size))}
	for at, mark := range marks {
		args = append(args, "-c", fmt.Sprintf("read -P %d %d 512", mark, 4096+at))
	}
	out := run(t, qemuIO, append(args, path)...)
	if n := strings.Count(out, "read 512/512"); n != len(marks)+1 || strings.Contains(out, "Pattern verification failed") {
		t.Errorf("qemu-io says\n%s", out)
	}
}

func TestQEMUReadsAGeneratedFileAndItsZeros(t *testing.T) { eachQEMU(t, readsGenerated) }

func readsGenerated(t *testing.T, bin string) {
	qemuImg, dir := bin+"/qemu-img", t.TempDir()
	layer, table := pattern("layer", 1024), pattern("table", 1536)
	path, err := vmdk.WriteDisk(dir, "layers.vmdk", []vmdk.Extent{
		{Sectors: 2}, {Sectors: 4, Offset: 3}, {Path: put(t, dir, "layer", layer), Sectors: 2}, {Sectors: 1, Offset: 2},
	}, &vmdk.Generated{Data: table, Size: 1536 + 2048})
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(table[:1024], make([]byte, 2048), layer, table[1024:])
	raw := filepath.Join(dir, "raw")
	run(t, qemuImg, "convert", "-f", "vmdk", "-O", "raw", path, raw)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Errorf("QEMU reads %d bytes, %v, want %d; or they differ", len(got), err, len(want))
	}
}
