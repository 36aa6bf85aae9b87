// Package templates tries virtual machines that go on from a template, by `ctr run`,
// under a containerd, a shim and a guest that are all real.
package templates
