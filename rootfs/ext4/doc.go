// Package ext4 reads of an ext4 image what says whether it is whole, and makes
// images.
//
// It owns that reading, a directory of templates and the runs of mkfs.ext4; it
// mounts nothing and starts no goroutine. Its functions may be called from any
// goroutine, and several processes may share a directory of templates. Images
// are untrusted; every field is checked before it is used. The package never
// writes to a file that has a name.
package ext4
