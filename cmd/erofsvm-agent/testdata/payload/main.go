// Command payload is what the containers of the agent's tests run: each word it
// knows shows one thing about the container it is in.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "payload:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "exit": // exit CODE
		code, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		os.Exit(code)
	case "echo": // words to stdout and stderr
		fmt.Println(strings.Join(args[1:], " "))
		fmt.Fprintln(os.Stderr, "to stderr")
	case "cat":
		return cat(args[1:])
	case "write": // write FILE TEXT
		return os.WriteFile(args[1], []byte(args[2]), 0o644)
	case "fill": // fill FILE BYTES
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return os.WriteFile(args[1], make([]byte, n), 0o644)
	case "flood": // flood BYTES
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			_ = w.WriteByte(byte('a' + i%26)) // Flush has the error
		}
		return w.Flush()
	case "zeros": // zeros BYTES, in pieces of a pipe's size
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for piece := make([]byte, 64<<10); n > 0; n -= len(piece) {
			if _, err := os.Stdout.Write(piece[:min(n, len(piece))]); err != nil {
				return err
			}
		}
	case "wait": // until a signal comes, which it names
		signals := make(chan os.Signal, 1)
		signal.Notify(signals)
		fmt.Println("waiting")
		for s := range signals {
			if s != syscall.SIGURG { // the Go runtime's own
				fmt.Println(s)
				os.Exit(7)
			}
		}
	case "family": // names the signals that come, as does a child of it
		if len(args) == 1 {
			child := exec.Command("/payload", "family", "child")
			child.Stdout = os.Stdout
			if err := child.Start(); err != nil {
				return err
			}
		}
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1)
		who := []string{"parent", "child"}[len(args)-1]
		fmt.Println(who, "ready")
		for s := range signals {
			fmt.Println(who, s)
		}
	case "orphan": // leaves behind a child that waits
		child := exec.Command("/payload", "wait")
		if err := child.Start(); err != nil {
			return err
		}
		fmt.Println(child.Process.Pid)
	case "facts":
		return facts()
	case "agent":
		return agent()
	case "processes":
		return processes()
	case "burn": // computes for ever
		fmt.Println("burning")
		for {
		}
	case "eat": // eat BYTES of memory, and keep them until the input ends
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		eaten := make([]byte, n)
		for i := 0; i < n; i += 4096 {
			eaten[i] = 1
		}
		fmt.Println("ate")
		_, err = io.Copy(io.Discard, os.Stdin)
		runtime.KeepAlive(eaten)
		return err
	case "parent": // parent WORD…: runs itself with the words and outlives it
		child := exec.Command("/payload", args[1:]...)
		fmt.Println(child.Run())
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	case "count": // bytes of the input
		n, err := io.Copy(io.Discard, os.Stdin)
		fmt.Println(n)
		return err
	case "deaf": // closes its input, and waits
		if err := os.Stdin.Close(); err != nil {
			return err
		}
		return run([]string{"wait"})
	case "hook": // hook FILE: keeps the state that a hook is given
		state, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		return os.WriteFile(args[1], state, 0o644)
	case "tty":
		var size [4]uint16 // struct winsize
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size))); e != 0 {
			return e
		}
		fmt.Println("terminal", size[0], size[1])
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Print("read ", line)
		return err
	default:
		return fmt.Errorf("no %q", args[0])
	}
	return nil
}

// cat copies files, or its input, to its output.
func cat(names []string) error {
	if len(names) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// facts prints a line a fact, "name: value".
func facts() error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Println("hostname:", hostname)
	fmt.Println("pid:", os.Getpid())
	fmt.Println("cwd:", dir)
	fmt.Println("mark:", os.Getenv("MARK"))
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Uid") || strings.HasPrefix(line, "Gid") || strings.HasPrefix(line, "Seccomp:") || strings.HasPrefix(line, "Groups") {
			fmt.Print(strings.ReplaceAll(line, "\t", " "))
		}
	}
	var core syscall.Rlimit // not of files: the Go runtime raises that
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &core); err != nil {
		return err
	}
	fmt.Println("core:", core.Cur, core.Max)
	limit, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	fmt.Println("memory.max:", strings.TrimSpace(string(limit)), err)
	masked, err := os.ReadFile("/proc/kcore")
	fmt.Println("kcore:", len(masked), err)
	fmt.Println("sysctl:", os.WriteFile("/proc/sys/kernel/hostname", []byte("other"), 0))
	mounts, err := os.ReadFile("/proc/self/mounts")
	fmt.Print(string(mounts))
	return err
}

// agent prints what the guest's first process holds, for a container that sees
// the processes of the guest.
func agent() error {
	status, err := os.ReadFile("/proc/1/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmRSS" || name == "Threads" {
			fmt.Println(name, strings.Fields(value)[0])
		}
	}
	open, err := os.ReadDir("/proc/1/fd")
	fmt.Println("Descriptors", len(open))
	return err
}

// processes prints the command of each process that is to be seen, and what can be
// looked into of the first.
func processes() error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range all {
		words, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		fmt.Printf("%s: %s\n", filepath.Base(filepath.Dir(name)), strings.TrimSpace(strings.ReplaceAll(string(words), "\x00", " ")))
	}
	_, err = os.ReadDir("/proc/1/root")
	fmt.Println("root of the first:", err)
	return nil
}
