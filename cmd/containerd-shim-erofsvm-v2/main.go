// Command containerd-shim-erofsvm-v2 is the shim that containerd runs for the
// runtime io.containerd.erofsvm.v2. It only wires; see runtime/shim.
package main

import (
	"os"

	"github.com/erofsvm/erofsvm/runtime/shim"
)

func main() {
	os.Exit(shim.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}
