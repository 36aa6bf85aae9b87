// Package harness runs a private containerd beside the host's own, if it has
// one: own binaries, root, state, socket and configuration, with the EROFS
// snapshotter and erofsvm's shim, and everything that it starts in a cgroup of
// its own, so that nothing can be missed when it ends.
//
// It serves the end-to-end tests, the benchmarks and the demo. It knows nothing
// of package testing; harness/e2etest joins the two. A Containerd may be used
// from any goroutine. The package never touches what lies outside the run
// directory, that cgroup and the containerd that it started.
package harness
