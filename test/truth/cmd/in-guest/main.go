// Command in-guest is the program of the containers that look at their root
// filesystem from inside a VM: static, and in no need of anything else there.
//
//	in-guest list [-skip path]... [root]     the tree, as package test/tree lists it
//	in-guest devices                         the block devices that the kernel has
//	in-guest dmesg                           the kernel's log
//	in-guest wait                            nothing, until it is killed
//	in-guest read file...                    the SHA-256 of each file
//	in-guest fill file                       writes until the filesystem is full
//	in-guest write bytes file                writes that much noise
//	in-guest remove file...                  removes files
//	in-guest again file                      reads a file until standard input ends
//	in-guest walk root                       walks over a tree, as standard input asks
//
// Writes are synced before they are reported. An error is told as the name of
// its number, such as EIO, on standard output, so that a test can ask for it;
// the exit code is then 1.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/tree"
)

func main() {
	if len(os.Args) < 2 {
		fatal(errors.New("no command"))
	}
	args := os.Args[2:]
	var err error
	switch command := os.Args[1]; command {
	case "list":
		err = list(args)
	case "devices":
		err = devices()
	case "dmesg":
		err = dmesg()
	case "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("waiting")
		<-stop
	case "read":
		err = each(args, sum)
	case "fill":
		err = each(args, func(name string) error { return write(name, 1<<40) })
	case "write":
		var n int64
		if n, err = strconv.ParseInt(args[0], 10, 64); err == nil {
			err = each(args[1:], func(name string) error { return write(name, n) })
		}
	case "remove":
		err = each(args, remove)
	case "again":
		err = again(args[0])
	case "walk":
		err = walk(args[0])
	default:
		err = fmt.Errorf("no command %q", command)
	}
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "in-guest:", err)
	os.Exit(1)
}

func list(args []string) error {
	options := tree.Options{ModTime: true, OneFilesystem: true}
	root := "/"
	for len(args) > 0 {
		if args[0] == "-skip" {
			options.Skip = append(options.Skip, args[1])
			args = args[2:]
			continue
		}
		root, args = args[0], args[1:]
	}
	_, err := tree.List(os.Stdout, root, options)
	return err
}

// devices prints the name and the size, in KiB, of every block device.
func devices() error {
	table, err := os.ReadFile("/proc/partitions")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if words := strings.Fields(line); len(words) == 4 && words[0] != "major" {
			fmt.Println(words[3], words[2])
		}
	}
	return nil
}

// dmesg prints the kernel's log (syslog(2), SYSLOG_ACTION_READ_ALL).
func dmesg() error {
	log := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(log[:n])
	return err
}

// each does something with every file, and tells what came of it.
func each(files []string, do func(string) error) error {
	failed := 0
	for _, name := range files {
		if err := do(name); err != nil {
			fmt.Printf("%s %s\n", name, number(err))
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d failed", failed, len(files))
	}
	return nil
}

// number is the name of an error's number.
func number(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func sum(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	fmt.Printf("%s %d %x\n", name, n, h.Sum(nil))
	return nil
}

// write writes n bytes, or until there is an error; the file stays.
func write(name string, n int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := make([]byte, 256<<10)
	var key [32]byte
	rng := rand.NewChaCha8(key)
	for left := n; left > 0; left -= int64(len(buffer)) {
		buffer = buffer[:min(left, int64(len(buffer)))]
		rng.Read(buffer)
		if _, err := f.Write(buffer); err != nil {
			return errors.Join(err, f.Sync())
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	fmt.Printf("%s written\n", name)
	return nil
}

// remove removes a file and waits until the disk knows.
func remove(name string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	unix.Sync()
	fmt.Printf("%s removed\n", name)
	return nil
}

// again reads a file past the page cache, over and over until standard input
// ends, and tells how often.
func again(name string) error {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	first := ""
	for rounds := 1; ; rounds++ {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
			return err
		}
		got := fmt.Sprintf("%x", h.Sum(nil))
		if rounds == 1 {
			first = got
			fmt.Println("reading")
		}
		if got != first {
			return fmt.Errorf("round %d read something else", rounds)
		}
		select {
		case <-ended:
			fmt.Printf("%s %d rounds %s\n", name, rounds, first)
			return nil
		default:
		}
	}
}
