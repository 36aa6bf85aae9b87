package k8s

import (
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/test/harness"
	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// The addresses of the cluster, all in the network namespace of the test.
const (
	nodeName     = "node"
	nodeAddress  = "10.77.0.10" // of the node and of every server on it
	podNetwork   = "10.88.9.0/24"
	services     = "10.96.0.0/24"
	firstService = "10.96.0.1" // of the API server
	nameserver   = "10.96.0.53"
	etcdAddress  = "http://127.0.0.1:2379"
	bridge       = "pods"
)

// handler is the runtime handler, as the RuntimeClass names it.
const handler = "erofsvm"

// cluster is a Kubernetes of one node.
type cluster struct {
	bed     *e2etest.Bed
	dir     string // of certificates, configurations and logs
	kubelet string // the kubelet's root directory
	group   string // cgroup of all that the kubelet has
	ca      *authority
	admin   identity
	daemons []*daemon
}

// startCluster starts all of it and returns when the node is ready.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), group: os.Getenv(insideVar)}
	c.kubelet = filepath.Join(c.dir, "kubelet")
	c.startContainerd(t)
	t.Cleanup(func() { keep(t, filepath.Join(c.bed.Dir(), "containerd.log")) })
	c.addNodeInterface(t)
	c.ca = newAuthority(t, c.dir, "ca")
	c.admin = c.user(t, "admin", "system:masters")
	c.startControlPlane(t)
	c.startNode(t)
	t.Cleanup(func() { c.explain(t) }) // as long as it can be asked
	return c
}

// program is one of the tools.
func (c *cluster) program(name string) string { return c.bed.Tree.Tool(tools, "bin", name) }

// environment is that of all programs of the cluster.
func (c *cluster) environment() []string {
	return []string{"PATH=" + c.bed.Tree.Tool(tools, "bin") + ":" + os.Getenv("PATH"), "HOME=" + c.dir}
}

// startContainerd starts the node's containerd, with the images of the test in it.
func (c *cluster) startContainerd(t *testing.T) {
	t.Helper()
	tree, err := harness.FindTree()
	if err != nil {
		t.Fatal(err)
	}
	network, err := json.Marshal(object{
		"cniVersion": "1.0.0", "name": bridge,
		"plugins": []object{{
			"type": "bridge", "bridge": bridge, "isGateway": true, "mtu": 1450,
			"ipam": object{
				"type": "host-local", "dataDir": filepath.Join(c.dir, "ipam"),
				"ranges": [][]object{{{"subnet": podNetwork}}}, "routes": []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.bed = e2etest.Own(t, harness.Options{LogLevel: "info", CRI: &harness.CRI{
		Pause: image.Pause, Plugins: tree.Tool("cni", "usr", "lib", "cni"), Network: network,
		Handlers: map[string]harness.Handler{
			handler:                  {Sandboxer: "podsandbox"},
			handler + "-sandbox-api": {Sandboxer: "shim"}, // see testdata/job.yaml
		},
	}})
	for _, archive := range []string{"one", "pause"} {
		c.bed.Image(t, archive, harness.Snapshotter)
	}
}

// addNodeInterface gives the node an address: the kubelet wants one that is not of
// the loopback. It is a bridge, which every host of pods has, and not a dummy device.
// What leads elsewhere leads nowhere.
func (c *cluster) addNodeInterface(t *testing.T) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	address, err := netlink.ParseAddr(nodeAddress + "/24")
	if err != nil {
		t.Fatal(err)
	}
	for _, do := range []func() error{
		func() error { return netlink.LinkAdd(link) },
		func() error { return netlink.AddrAdd(link, address) },
		func() error { return netlink.LinkSetUp(link) },
		func() error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Src: net.ParseIP(nodeAddress)})
		},
	} {
		if err := do(); err != nil {
			t.Fatalf("interface of the node: %v", err)
		}
	}
}

// user makes a client certificate, by which the API server knows who asks.
func (c *cluster) user(t *testing.T, name string, groups ...string) identity {
	t.Helper()
	id := c.ca.issue(t, name, pkix.Name{CommonName: name, Organization: groups}, nil)
	c.write(t, name+".kubeconfig", object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": name}}},
		"clusters": []object{{"name": "test", "cluster": object{"server": c.server(), "certificate-authority": c.ca.path}}},
		"users":    []object{{"name": name, "user": object{"client-certificate": id.cert, "client-key": id.key}}},
	})
	return id
}

func (c *cluster) kubeconfig(user string) string { return filepath.Join(c.dir, user+".kubeconfig") }

func (c *cluster) server() string { return "https://" + nodeAddress + ":6443" }

// object is one of JSON, which all of Kubernetes reads as YAML.
type object = map[string]any

// write writes a configuration and returns where.
func (c *cluster) write(t *testing.T, name string, value object) string {
	t.Helper()
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startControlPlane starts what a cluster has once.
func (c *cluster) startControlPlane(t *testing.T) {
	t.Helper()
	etcd := c.start(t, "etcd",
		"--data-dir="+filepath.Join(c.dir, "etcd"),
		"--listen-client-urls="+etcdAddress, "--advertise-client-urls="+etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380")
	c.answers(t, etcd, etcdAddress+"/health")

	ip := net.ParseIP(nodeAddress)
	serving := c.ca.issue(t, "kube-apiserver", pkix.Name{CommonName: "kube-apiserver"}, ip, "kubernetes.default.svc")
	toKubelet := c.ca.issue(t, "apiserver-to-kubelet", pkix.Name{CommonName: "apiserver", Organization: []string{"system:masters"}}, nil)
	front := newAuthority(t, c.dir, "front-proxy-ca")
	toExtensions := front.issue(t, "front-proxy", pkix.Name{CommonName: "front-proxy"}, nil)
	private, public := keyPair(t, c.dir, "service-accounts")
	apiserver := c.start(t, "kube-apiserver",
		"--etcd-servers="+etcdAddress,
		"--bind-address="+nodeAddress, "--advertise-address="+nodeAddress, "--secure-port=6443",
		"--tls-cert-file="+serving.cert, "--tls-private-key-file="+serving.key, "--client-ca-file="+c.ca.path,
		"--service-cluster-ip-range="+services,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+public, "--service-account-signing-key-file="+private,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority="+c.ca.path,
		"--kubelet-client-certificate="+toKubelet.cert, "--kubelet-client-key="+toKubelet.key,
		"--requestheader-client-ca-file="+front.path, "--requestheader-allowed-names=front-proxy",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+toExtensions.cert, "--proxy-client-key-file="+toExtensions.key)
	c.answers(t, apiserver, c.server()+"/readyz")

	c.user(t, "system:kube-controller-manager")
	c.start(t, "kube-controller-manager", append(c.serverFlags(t, "controller-manager", "system:kube-controller-manager"),
		"--leader-elect=false", "--use-service-account-credentials=true",
		"--service-account-private-key-file="+private, "--root-ca-file="+c.ca.path)...)
	c.user(t, "system:kube-scheduler")
	c.start(t, "kube-scheduler", append(c.serverFlags(t, "scheduler", "system:kube-scheduler"), "--leader-elect=false")...)
}

// serverFlags are those of a server that asks the API server as a user, also who asks
// itself.
func (c *cluster) serverFlags(t *testing.T, name, user string) []string {
	t.Helper()
	serving := c.ca.issue(t, name+"-serving", pkix.Name{CommonName: name}, net.ParseIP(nodeAddress), name)
	kubeconfig := c.kubeconfig(user)
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + nodeAddress, "--tls-cert-file=" + serving.cert, "--tls-private-key-file=" + serving.key,
	}
}

// startNode starts what each node has.
func (c *cluster) startNode(t *testing.T) {
	t.Helper()
	if err := makeGroups(c.group); err != nil {
		t.Fatal(err)
	}
	resolv := filepath.Join(c.dir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	serving := c.ca.issue(t, "kubelet-serving", pkix.Name{CommonName: "system:node:" + nodeName}, net.ParseIP(nodeAddress))
	c.user(t, "system:node:"+nodeName, "system:nodes")
	socket := "unix://" + c.bed.Socket()
	config := c.write(t, "kubelet.json", object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": nodeAddress, "tlsCertFile": serving.cert, "tlsPrivateKeyFile": serving.key,
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": c.ca.path},
		},
		"authorization":            object{"mode": "Webhook"},
		"containerRuntimeEndpoint": socket, "imageServiceEndpoint": socket,
		"cgroupDriver": "cgroupfs", "cgroupRoot": "/" + c.group,
		"failCgroupV1": false, "failSwapOn": false,
		"clusterDNS": []string{nameserver}, "clusterDomain": "cluster.local", "resolvConf": resolv,
		"podLogsDir": filepath.Join(c.dir, "pods"), "volumePluginDir": filepath.Join(c.dir, "plugins"),
		"makeIPTablesUtilChains": false,
		// How full the disk of this machine is shall not matter.
		"evictionHard": object{"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
		// What changes is looked for more often than a large cluster could bear.
		"syncFrequency": "5s", "volumeStatsAggPeriod": "5s", "nodeStatusUpdateFrequency": "5s",
		"protectKernelDefaults": true, // see pretendDefaults
	})
	t.Cleanup(func() {
		// The kubelet mounts its root directory upon itself, to share what it mounts.
		if err := unix.Unmount(c.kubelet, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount the kubelet's directory: %v", err)
		}
	})
	kubelet := c.start(t, "kubelet", "--config="+config, "--kubeconfig="+c.kubeconfig("system:node:"+nodeName),
		"--hostname-override="+nodeName, "--node-ip="+nodeAddress, "--root-dir="+c.kubelet, "--cert-dir="+c.dir, "--v=2")
	c.answers(t, kubelet, "http://127.0.0.1:10248/healthz")

	c.user(t, "system:kube-proxy")
	config = c.write(t, "kube-proxy.json", object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": c.kubeconfig("system:kube-proxy")},
		"hostnameOverride": nodeName, "mode": "nftables", "clusterCIDR": podNetwork,
		// Pods are on one bridge, where an answer would come past the node's rules.
		"nftables":  object{"masqueradeAll": true},
		"conntrack": object{"maxPerCore": 0, "min": 0}, // these are the host's
	})
	proxy := c.start(t, "kube-proxy", "--config="+config)
	c.answers(t, proxy, "http://127.0.0.1:10256/healthz")
	c.kubectl(t, "wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=60s")
}

// explain says what the cluster knows of a test that failed.
func (c *cluster) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, args := range [][]string{
		{"get", "all,events,endpointslices", "--all-namespaces", "--output=wide"},
		{"describe", "pods", "--all-namespaces"},
	} {
		out, err := c.run(t, "", args...)
		t.Logf("kubectl %v: %v\n%s", args, err, tail(out, 150))
	}
	shims, err := c.bed.Shims()
	t.Log(fmt.Sprint("shims: ", shims, ", ", err))
}
