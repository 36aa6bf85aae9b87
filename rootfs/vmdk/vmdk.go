// Package vmdk writes VMDK descriptors of type twoGbMaxExtentFlat, the format
// in which QEMU joins ranges of plain files into one read-only disk.
//
// It owns the text of the descriptor and nothing else: it opens no layer and
// starts no goroutine, and every function may be called from any goroutine.
package vmdk

// Extent is a range of a host file that becomes a range of the disk.
type Extent struct {
	Path    string `json:"path"`    // absolute host path
	Sectors int64  `json:"sectors"` // length in sectors of 512 bytes
	Offset  int64  `json:"offset"`  // start within the file, in sectors
}
