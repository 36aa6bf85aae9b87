package gpt_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/erofsvm/erofsvm/rootfs/gpt"
)

var diskID = uuid.MustParse("01234567-89ab-8def-8123-456789abcdef")

func contents(sectors ...int64) []gpt.Content {
	var out []gpt.Content
	for i, n := range sectors {
		id := diskID
		id[15] = byte(i)
		out = append(out, gpt.Content{Sectors: n, ID: id, Name: fmt.Sprintf("layer %d", i+1)})
	}
	return out
}

func same(n int, sectors int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = sectors
	}
	return out
}

// entry is a partition as a reader of the table finds it.
type entry struct {
	first, last uint64
	id          uuid.UUID
	name        string
}

// parse reads one copy of the table as UEFI 2.10, 5.3.2 tells a reader to:
// self is the sector of its header, which stands at the given place of the
// sectors, and base the disk's sector with which they begin.
func parse(sectors []byte, base, self uint64) (entries []entry, other uint64, err error) {
	le := binary.LittleEndian
	h := bytes.Clone(sectors[(self-base)*512:][:512])
	size := le.Uint32(h[12:])
	if string(h[:8]) != "EFI PART" || le.Uint32(h[8:]) != 0x10000 || size < 92 || size > 512 {
		return nil, 0, errors.New("no header")
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:size]) != sum {
		return nil, 0, errors.New("checksum of the header")
	}
	if le.Uint64(h[24:]) != self {
		return nil, 0, fmt.Errorf("header says it is at %d", le.Uint64(h[24:]))
	}
	at, count, width := le.Uint64(h[72:]), uint64(le.Uint32(h[80:])), uint64(le.Uint32(h[84:]))
	table := sectors[(at-base)*512:][:count*width]
	if crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, 0, errors.New("checksum of the entries")
	}
	firstUsable, lastUsable := le.Uint64(h[40:]), le.Uint64(h[48:])
	for ; len(table) > 0; table = table[width:] {
		if bytes.Equal(table[:16], make([]byte, 16)) {
			continue
		}
		e := entry{first: le.Uint64(table[32:]), last: le.Uint64(table[40:])}
		if e.first < firstUsable || e.last > lastUsable || e.last < e.first {
			return nil, 0, fmt.Errorf("partition %d to %d of usable %d to %d", e.first, e.last, firstUsable, lastUsable)
		}
		g := table[16:32]
		e.id = uuid.UUID{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
		for i := 56; i < 128 && table[i] != 0; i += 2 {
			e.name += string(rune(le.Uint16(table[i:])))
		}
		entries = append(entries, e)
	}
	return entries, le.Uint64(h[32:]), nil
}

// check reads both copies and compares them with the layout.
func check(t *testing.T, l *gpt.Layout, want []gpt.Content) {
	t.Helper()
	last := uint64(l.Sectors - 1)
	first, other, err := parse(l.Primary, 0, 1)
	if err != nil || other != last {
		t.Fatalf("primary table: %v, names the other at %d, want %d", err, other, last)
	}
	second, other, err := parse(l.Backup, uint64(l.BackupStart()), last)
	if err != nil || other != 1 {
		t.Fatalf("backup table: %v, names the other at %d, want 1", err, other)
	}
	if fmt.Sprint(first) != fmt.Sprint(second) || len(first) != len(want) || len(l.Partitions) != len(want) {
		t.Fatalf("primary has %v\nbackup has %v\nwant %d partitions", first, second, len(want))
	}
	end := int64(len(l.Primary) / 512)
	for i, e := range first {
		p := l.Partitions[i]
		if int64(e.first) != p.Start || int64(e.last-e.first+1) != p.Sectors || p.Sectors != want[i].Sectors {
			t.Errorf("partition %d is %+v in the table, %+v in the layout, of %d sectors", i+1, e, p, want[i].Sectors)
		}
		if e.id != want[i].ID || e.name != want[i].Name {
			t.Errorf("partition %d is %s %q, want %s %q", i+1, e.id, e.name, want[i].ID, want[i].Name)
		}
		if p.Start%2048 != 0 || p.Start < end {
			t.Errorf("partition %d starts at %d, the one before ends at %d", i+1, p.Start, end)
		}
		end = p.Start + p.Sectors
	}
	if end > l.BackupStart() {
		t.Errorf("the backup starts at %d, the last partition ends at %d", l.BackupStart(), end)
	}
}

func TestBothCopiesSayWhereTheContentsLie(t *testing.T) {
	for name, sectors := range map[string][]int64{
		"one sector":       {1},
		"aligned":          {2048, 4096},
		"odd":              {2047, 2049, 8, 1},
		"past 4 GiB":       {5 << 30 / 512, 8},
		"past 2 TiB":       {3 << 40 / 512, 8},
		"128 partitions":   same(128, 8),
		"129 partitions":   same(129, 8),
		"all that can be":  same(gpt.MaxPartitions, 8),
		"almost 1 MiB, 3x": same(3, 2047),
	} {
		t.Run(name, func(t *testing.T) {
			want := contents(sectors...)
			l, err := gpt.New(diskID, want)
			if err != nil {
				t.Fatal(err)
			}
			check(t, l, want)
			entries := 128
			if len(sectors) > 128 {
				entries = 256
			}
			if len(l.Primary) != 1024+entries*128 || len(l.Backup) != 512+entries*128 {
				t.Errorf("%d and %d bytes, want room for %d entries", len(l.Primary), len(l.Backup), entries)
			}
			again, err := gpt.New(diskID, want)
			if err != nil || !bytes.Equal(l.Primary, again.Primary) || !bytes.Equal(l.Backup, again.Backup) {
				t.Errorf("the same partitions make other bytes (%v)", err)
			}
		})
	}
}

func TestWhatCannotBeLaidOutIsRefused(t *testing.T) {
	long := contents(8)
	long[0].Name = strings.Repeat("n", 37)
	for name, c := range map[string][]gpt.Content{
		"nothing":        nil,
		"256 partitions": contents(same(256, 8)...),
		"no sector":      contents(8, 0),
		"less":           contents(-1),
		"too long":       contents(1<<52 + 1),
		"too long a sum": contents(1<<52, 1<<52, 1),
		"long name":      long,
	} {
		if l, err := gpt.New(diskID, c); !errors.Is(err, gpt.ErrLayout) {
			t.Errorf("%s: %+v, %v, want %v", name, l, err, gpt.ErrLayout)
		}
	}
}

// disk is a sparse file with the layout, every partition full of holes.
func disk(t *testing.T, l *gpt.Layout) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, first := f.WriteAt(l.Primary, 0)
	_, second := f.WriteAt(l.Backup, l.BackupStart()*512)
	if err := errors.Join(first, second); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool skips without a program of util-linux: the one that Debian always has is
// partx, and sfdisk also looks at the backup and the MBR.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	t.Skipf("no %s on this host", name)
	return ""
}

func TestPartxReadsWhatIsMeant(t *testing.T) {
	partx := tool(t, "partx")
	for _, n := range []int{1, 5, 128, 129, 255} {
		want := contents(same(n, 2049)...)
		l, err := gpt.New(diskID, want)
		if err != nil {
			t.Fatal(err)
		}
		var lines strings.Builder
		for i, p := range l.Partitions {
			fmt.Fprintf(&lines, "%d %d %d %s\n", i+1, p.Start, p.Sectors, want[i].ID)
		}
		out, err := exec.Command(partx, "--raw", "--noheadings", "--output", "NR,START,SECTORS,UUID", disk(t, l)).CombinedOutput()
		if err != nil || string(out) != lines.String() {
			t.Errorf("%d partitions: %v, partx reads\n%s\nwant\n%s", n, err, out, lines.String())
		}
	}
}

func TestSfdiskReadsWhatIsMeant(t *testing.T) {
	sfdisk := tool(t, "sfdisk")
	want := contents(8, 2048, 5<<30/512)
	l, err := gpt.New(diskID, want)
	if err != nil {
		t.Fatal(err)
	}
	path := disk(t, l)
	out, err := exec.Command(sfdisk, "--json", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Table struct {
			Label, ID         string
			FirstLBA, LastLBA int64
			Partitions        []struct {
				Start, Size      int64
				Type, UUID, Name string
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Table.Label != "gpt" || !strings.EqualFold(got.Table.ID, diskID.String()) || len(got.Table.Partitions) != len(want) {
		t.Fatalf("sfdisk reads %s", out)
	}
	for i, p := range got.Table.Partitions {
		at := l.Partitions[i]
		if p.Start != at.Start || p.Size != at.Sectors || p.Name != want[i].Name || !strings.EqualFold(p.UUID, want[i].ID.String()) {
			t.Errorf("partition %d is %+v, want %+v", i+1, p, at)
		}
	}
	// It says "No errors detected." only if MBR, backup and checksums agree.
	said, err := exec.Command(sfdisk, "--verify", path).CombinedOutput()
	if err != nil || !bytes.Contains(said, []byte("No errors detected")) {
		t.Errorf("sfdisk --verify: %v\n%s", err, said)
	}
}

// FuzzNew wants every set of partitions refused, or read back as it is meant.
func FuzzNew(f *testing.F) {
	f.Add([]byte{1})
	f.Add([]byte{0x80, 0xff, 8, 0, 1})
	f.Add(bytes.Repeat([]byte{3}, 300))
	f.Fuzz(func(t *testing.T, data []byte) {
		var sectors []int64
		for len(data) > 0 {
			n, used := binary.Varint(data)
			if used <= 0 {
				n, used = int64(data[0]), 1
			}
			sectors, data = append(sectors, n), data[used:]
		}
		want := contents(sectors...)
		l, err := gpt.New(diskID, want)
		if err != nil {
			if !errors.Is(err, gpt.ErrLayout) {
				t.Error(err)
			}
			return
		}
		check(t, l, want)
	})
}
