// Package e2e holds the tests that run the whole path: containerd, the shim,
// QEMU, the guest and a container in it. Nothing in them is a fake.
//
// They need root, the tools, the guest image and the test images (make
// test-e2e), and boot one or two VMs each, one test after the other.
package e2e
