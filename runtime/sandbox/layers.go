package sandbox

import (
	"sync"

	"github.com/erofsvm/erofsvm/rootfs"
)

// layerNames knows which file of the host the guest means when it speaks of a
// disk or of a partition. Its methods may be called from any goroutine.
type layerNames struct {
	mu    sync.Mutex
	paths map[layerPlace]string
}

// layerPlace is where a layer is for the guest.
type layerPlace struct {
	source    string // address of the disk, as in a storage of the agent
	partition int    // 0: the whole disk
}

// add remembers what lies on the disk with the given address.
func (n *layerNames) add(source string, d rootfs.Disk) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paths == nil {
		n.paths = map[layerPlace]string{}
	}
	if d.Path != "" {
		n.paths[layerPlace{source, 0}] = d.Path
	}
	for _, p := range d.Partitions {
		n.paths[layerPlace{source, p.Number}] = p.Path
	}
}

// remove forgets a disk; its address may be given to another one.
func (n *layerNames) remove(source string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for place := range n.paths {
		if place.source == source {
			delete(n.paths, place)
		}
	}
}

// clear forgets all disks: their VM is no more.
func (n *layerNames) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.paths)
}

// at is the path of what lies there, "" if it is not known.
func (n *layerNames) at(source string, partition int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.paths[layerPlace{source, partition}]
}
