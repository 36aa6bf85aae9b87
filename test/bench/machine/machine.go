// Package machine says on what something was measured: the host, and the versions
// of what ran there.
//
// It reads files and asks uname and git; it changes nothing and starts no goroutine.
package machine

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/harness"
)

// patience is for one program to say its version.
const patience = 10 * time.Second

// Facts are those of this host and of the tree's build. What cannot be found out is
// said to be unknown: a report without a version is better than none.
func Facts(ctx context.Context, tree harness.Tree) []figures.Fact {
	facts := []figures.Fact{
		{Name: "processor", Value: fmt.Sprintf("%s, %d online", field("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{Name: "memory", Value: field("/proc/meminfo", "MemTotal")},
		{Name: "load before", Value: firstLine(os.ReadFile("/proc/loadavg"))},
		{Name: "host kernel", Value: said(ctx, "uname", "-sr")},
		{Name: "hardware virtualisation", Value: exists("/dev/kvm")},
	}
	for _, tool := range []string{"qemu", "kernel", "vhost-device-vsock", "erofs-utils"} {
		// test/setup/tools.sh notes what it has installed.
		facts = append(facts, figures.Fact{Name: tool, Value: firstLine(os.ReadFile(tree.Tool(tool, "version")))})
	}
	facts = append(facts,
		figures.Fact{Name: "containerd", Value: harness.Releases[0]},
		figures.Fact{Name: "erofsvm", Value: said(ctx, "git", "describe", "--always", "--dirty")})
	return append(facts, figures.Fact{Name: "Go", Value: runtime.Version()})
}

const unknown = "unknown"

// field is the value of the first line "name : value" of a file of proc(5).
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return unknown
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

func exists(path string) string {
	if _, err := os.Stat(path); err != nil {
		return "no " + path
	}
	return path
}

// said is the first line that a program prints.
func said(ctx context.Context, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return firstLine(exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput())
}

func firstLine(text []byte, err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	if err != nil || line == "" {
		return unknown
	}
	return line
}
