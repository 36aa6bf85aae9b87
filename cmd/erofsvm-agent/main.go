// Command erofsvm-agent is the first process of the guest, and the process that
// libcontainer makes a container's first one from.
package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before the Go runtime starts
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/agent"
	"github.com/erofsvm/erofsvm/guest/podinit"
)

func init() {
	// libcontainer runs this program again, as "init", to become the first
	// process of a container. Init does not return.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
	// And the agent runs it again to be the first process of a pid namespace.
	if len(os.Args) > 1 && os.Args[1] == podinit.Word {
		podinit.Main()
	}
	// Orphans fall to the main thread, see boot.ReapOrphans.
	runtime.LockOSThread()
}

func main() {
	began := time.Now()
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "erofsvm-agent is the first process of a guest and runs nowhere else")
		os.Exit(2)
	}
	err := agent.Run(began)
	// The last words go to the console, which the host shows in its error.
	fmt.Fprintln(os.Stderr, "erofsvm-agent:", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}
