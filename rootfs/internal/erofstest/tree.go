package erofstest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Tree lists everything below root, a line each, sorted by name: mode, owner,
// time, size and content or target or device number, extended attributes, and
// for the second and later names of a file the first one.
func Tree(t testing.TB, root string) []string {
	t.Helper()
	var lines []string
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		line, err := describe(path, first)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		lines = append(lines, fmt.Sprintf("%q %s", rel, line))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func describe(path string, first map[uint64]string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	stat := info.Sys().(*syscall.Stat_t)
	var line strings.Builder
	fmt.Fprintf(&line, "%s %d:%d %d", info.Mode(), stat.Uid, stat.Gid, info.ModTime().UnixNano())
	switch mode := info.Mode(); {
	case mode.IsRegular():
		sum, err := digest(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&line, " %d %x", info.Size(), sum)
		if stat.Nlink > 1 {
			if first[stat.Ino] == "" {
				first[stat.Ino] = filepath.Base(path)
			} else {
				fmt.Fprintf(&line, " link of %q", first[stat.Ino])
			}
		}
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&line, " -> %q", target)
	case mode&fs.ModeDevice != 0:
		fmt.Fprintf(&line, " %d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	}
	attrs, err := xattrs(path)
	return line.String() + attrs, err
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var line strings.Builder
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("xattr %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(&line, " %s=%q", name, buf[:n])
	}
	return line.String(), nil
}
