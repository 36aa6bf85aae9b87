// Package k8s holds the test that runs a real Kubernetes on this machine and pods
// of it in virtual machines: etcd, the API server, the scheduler, the controllers,
// the kubelet, kube-proxy and metrics-server, with a containerd, the shim, QEMU and
// a guest behind them. What stands in its test files runs by `make test-k8s`, and
// everything is done with kubectl, as people do it.
//
// The test binary runs itself again in namespaces of its own (mounts, processes,
// network), where the node's fixed paths are folders of the run. Outside of those
// there are its cgroups, below one of a name of its own.
package k8s
