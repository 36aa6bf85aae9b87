// Package truth tests that a container in a VM sees its image: for every
// strategy by which layers become a disk, and every shape in which containerd
// hands them over, the tree in the guest is compared file by file with what the
// host's overlayfs makes of the same tars.
//
// The tests drive the sandbox of the runtime directly and share virtual
// machines: a container is made, lists its tree, and is deleted, while another
// one keeps the machine alive. So they run one after the other.
package truth
