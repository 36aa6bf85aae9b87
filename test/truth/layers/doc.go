// Package layers makes images for tests that look at them from inside a VM: the
// tars of a chain of layers, EROFS files of them as containerd's differ makes
// them, writable images, and the lists of mounts that containerd's EROFS
// snapshotter hands over for them.
//
// It owns nothing but the files that it is asked to make, in the directory that
// it is given, and starts no goroutine. Its functions may be called from any
// goroutine, a Chain by one at a time. The same chain has the same bytes
// wherever and whenever it is made.
package layers
