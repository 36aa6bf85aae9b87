// Package network joins a network namespace to a virtual machine: it reads what
// CNI put there (interfaces, addresses, routes, neighbours), and makes for each
// interface a tap device whose frames are the interface's.
//
// A Namespace owns what it made in the namespace: taps and the rules that
// redirect frames between them and the interfaces. The interfaces themselves,
// their addresses and routes are CNI's and never changed. One Namespace of all
// the programs on the host may work in a network namespace at a time; the kernel
// ends that claim with the process. Methods of a Namespace may be called from
// any goroutine, and one at a time of those that change something.
//
// The calling thread never changes its namespace: what has to happen inside
// happens on a thread that is thrown away afterwards (see Namespace.inside).
// Every request to the kernel has a deadline. The package knows nothing of
// virtual machines but that they take descriptors of taps.
package network
