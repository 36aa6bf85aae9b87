// Package qemu runs a VM with QEMU: one process per VM, a child of the caller,
// that ends with it.
//
// Start makes a Machine, whose methods may be called from any goroutine. A
// Machine owns QEMU, the vsock device with its daemon, its directory, and
// three goroutines: the one that reaps QEMU, the one that reads its events,
// and the supervisor, which undoes everything when QEMU has ended, for whatever
// reason. One more may follow an Attach for a moment. Cleanup does the same for
// a VM whose owner has died.
//
// The package never interprets what the guest says, never reads the files
// behind disks, and no lock of it is held while QEMU or the guest is waited for.
package qemu
