package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
)

// partitions is what Linux prints, with a partition that is as large as a disk.
const partitions = `major minor  #blocks  name

 254        0     196608 vda
 254       16     133140 vdb
 254       32     237568 vdc
 254       33     133140 vdc1
 254       48       2048 vdd
 254       64       2048 vde
`

func TestADiskIsFoundByItsSize(t *testing.T) {
	for _, c := range []struct {
		kib          int64
		major, minor string
	}{
		{196608, "254", "0"}, {133140, "254", "16"}, // and not the partition
		{2048, "", ""}, // two
		{1, "", ""},    // none
	} {
		major, minor, err := number(partitions, c.kib<<10)
		if major != c.major || minor != c.minor || (err == nil) != (c.major != "") {
			t.Errorf("%d KiB: %q, %q, %v", c.kib, major, minor, err)
		}
	}
}

func TestAnArchiveHasTheWholeTree(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "usr", "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr", "bin", "fio"), []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	data, err := archiveOf(root)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode != 0o755 || h.Uid != 0 {
			t.Errorf("%q has mode %o and owner %d", h.Name, h.Mode, h.Uid)
		}
		got[h.Name] = string(content)
	}
	if want := map[string]string{"./": "", "usr/": "", "usr/bin/": "", "usr/bin/fio": "program"}; !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// The end is marked, or mkfs.erofs takes it for cut off.
	if end := data[max(0, len(data)-1024):]; !bytes.Equal(end, make([]byte, 1024)) {
		t.Error("the archive has no end")
	}
	if err := os.Symlink("fio", filepath.Join(root, "usr", "bin", "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := archiveOf(root); err == nil {
		t.Error("what cannot be kept is left out without a word")
	}
}

func TestTheAgentsLogTellsTheSteps(t *testing.T) {
	line := `level=info msg="guest: container created" disks_took=2.5e+08 id=c1 mounts_took=4000000 process_took=1 sandbox=c1`
	got, err := stepsOf(line)
	if want := []time.Duration{250 * time.Millisecond, 4 * time.Millisecond}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "disks_took=1", "disks_took=1 mounts_took=soon"} {
		if got, err := stepsOf(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func TestTreesTakeTurns(t *testing.T) {
	var got []string
	err := inTurn([]tree{{name: "a"}, {name: "b"}}, 2, func(i int, counts bool) error {
		got = append(got, fmt.Sprint(i, counts))
		return nil
	})
	if want := []string{"0 false", "1 false", "1 true", "0 true", "0 true", "1 true"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestEveryTreeHasARow(t *testing.T) {
	var report figures.Report
	w := &tables{report: &report, trees: []tree{{name: "apart", against: "merged"}, {name: "merged"}}, byName: map[string]*figures.Table{}}
	w.add("find", 1, 2*time.Millisecond)
	w.add("find", 0, 3*time.Millisecond)
	if len(report.Tables) != 1 || len(report.Tables[0].Rows) != 2 {
		t.Fatalf("%+v", report)
	}
	table := report.Tables[0]
	if row := table.Rows[0]; row.Name != "apart" || !slices.Equal(table.Ratios(row), []float64{1.5}) {
		t.Errorf("%+v with ratios %v", row, table.Ratios(row))
	}
}
