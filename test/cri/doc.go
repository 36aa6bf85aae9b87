// Package cri holds the tests that drive pods as a kubelet does: through the CRI
// of a real containerd, with the shim, QEMU and a guest behind it. What stands in
// its test files runs by `make test-cri`; with -all it asks every supported
// containerd, and for pods that take longer.
package cri
