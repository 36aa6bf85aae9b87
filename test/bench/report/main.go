// Report makes one page of the reports that `make bench` has written, with drawings.
// It is the last step of `make bench`.
//
// It is a module of its own, so that nothing else needs what draws.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	dir := flag.String("dir", ".build/bench", "folder with the reports, for report.md and its drawings")
	names := flag.String("reports", "results,disks,execs,network,pods,shimtest", "which, in this order, where they are there")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(*dir, strings.Split(*names, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}
