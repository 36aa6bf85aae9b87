// Package kubernetes renders the Helm chart of configs/kubernetes with Helm's own
// engine, and reads the result with Kubernetes' own types.
//
// It is a module of its own, so that neither comes near the runtime's. Its tests
// need no cluster.
package kubernetes

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	chartDir = "../../configs/kubernetes/chart"
	someRepo = "registry.invalid/erofsvm"
)

// values are what a user gives, in YAML, by the name of the golden file.
var values = map[string]string{
	"default": "image: {repository: " + someRepo + "}",
	"all": `
image: {repository: ` + someRepo + `, digest: "sha256:` + strings.Repeat("0", 64) + `", pullPolicy: Always, pullSecrets: [{name: pull}]}
runtimeClass: {name: vm, requireKVM: false, overhead: {memory: 100Mi, cpu: 100m}}
containerd:
  handler: vm
  config: /var/lib/rancher/k3s/agent/etc/containerd/config.toml
  dropinDir: /var/lib/rancher/k3s/agent/etc/containerd/more.d
  program: /var/lib/rancher/k3s/data/current/bin/containerd
  socket: /run/k3s/containerd/containerd.sock
  restart: k3s.service
  sandboxer: shim
  defaultSize: 20G
  fsverity: true
  immutable: true
  dmVerity: auto
  podAnnotations: [io.erofsvm.*]
configuration: |
  [hypervisor]
  vcpus = 2
  [annotations]
  allowed = ["io.erofsvm.*"]
binDir: /opt/erofsvm/bin
shareDir: /opt/erofsvm/share
force: true
nodeSelector: {example.org/vms: "yes"}
tolerations: []
priorityClassName: high
resources: {}
`,
	"uninstall": `
image: {repository: ` + someRepo + `, tag: "1"}
uninstall: true
configuration: "# kept for later"
containerd: {restart: ""}
`,
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// render is what `helm template erofsvm --namespace vms` prints, by file.
func render(t *testing.T, text string) (map[string]string, error) {
	t.Helper()
	var given map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &given); err != nil {
		t.Fatal(err)
	}
	c := load(t)
	all, err := util.ToRenderValues(c, given, common.ReleaseOptions{Name: "erofsvm", Namespace: "vms", Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// documents are the objects of a release, in the order of their files.
func documents(files map[string]string) []string {
	var docs []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for _, doc := range strings.Split(files[name], "\n---\n") {
			if doc = strings.TrimSpace(doc); doc != "" {
				docs = append(docs, doc)
			}
		}
	}
	return docs
}

func TestTheChartRendersAsTheGoldenFiles(t *testing.T) {
	for name, text := range values {
		files, err := render(t, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := []byte(strings.Join(documents(files), "\n---\n") + "\n---\n# NOTES.txt\n# " +
			strings.ReplaceAll(strings.TrimSpace(files["erofsvm/templates/NOTES.txt"]), "\n", "\n# ") + "\n")
		golden := filepath.Join("testdata", name+".yaml")
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is now (go test -update writes it):\n%s", name, got)
		}
	}
}

// decoder reads objects of the kinds that the chart may have, and refuses a field
// that their types do not know, and one that is there twice.
func decoder(t *testing.T) *json.Serializer {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, nodev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
}

func decode(t *testing.T, d *json.Serializer, doc string) runtime.Object {
	t.Helper()
	object, _, err := d.Decode([]byte(doc), nil, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return object
}

// objects are those of a release by kind.
func objects(t *testing.T, text string) map[string]runtime.Object {
	t.Helper()
	files, err := render(t, text)
	if err != nil {
		t.Fatal(err)
	}
	d, all := decoder(t), map[string]runtime.Object{}
	for _, doc := range documents(files) {
		object := decode(t, d, doc)
		kind := object.GetObjectKind().GroupVersionKind().Kind
		if all[kind] != nil {
			t.Errorf("two objects of kind %s", kind)
		}
		all[kind] = object
	}
	return all
}

func TestEveryObjectIsOneOfKubernetesOwn(t *testing.T) {
	for name, want := range map[string][]string{
		"default":   {"ClusterRole", "ClusterRoleBinding", "DaemonSet", "RuntimeClass", "ServiceAccount"},
		"all":       {"ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "RuntimeClass", "ServiceAccount"},
		"uninstall": {"ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "ServiceAccount"},
	} {
		if got := slices.Sorted(maps.Keys(objects(t, values[name]))); !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
}

// TestTheDecoderIsStrict: one that is not would take any chart.
func TestTheDecoderIsStrict(t *testing.T) {
	const good = "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: x}\nhandler: x\n"
	d := decoder(t)
	decode(t, d, good)
	for _, bad := range []string{good + "snapshotter: erofs\n", good + "handler: y\n", strings.Replace(good, "node.k8s.io/v1", "node.k8s.io/v9", 1)} {
		if _, _, err := d.Decode([]byte(bad), nil, nil); err == nil {
			t.Errorf("it took\n%s", bad)
		}
	}
}

func TestThePartsOfAReleaseFitTogether(t *testing.T) {
	for name := range values {
		all := objects(t, values[name])
		ds := all["DaemonSet"].(*appsv1.DaemonSet)
		pod := ds.Spec.Template
		for k, v := range ds.Spec.Selector.MatchLabels {
			if pod.Labels[k] != v {
				t.Errorf("%s: the DaemonSet does not select its own pods: %s", name, k)
			}
		}
		account := all["ServiceAccount"].(*corev1.ServiceAccount)
		binding := all["ClusterRoleBinding"].(*rbacv1.ClusterRoleBinding)
		if pod.Spec.ServiceAccountName != account.Name || binding.Subjects[0].Name != account.Name || binding.Subjects[0].Namespace != account.Namespace {
			t.Errorf("%s: the pods run as %s, and %v may label", name, pod.Spec.ServiceAccountName, binding.Subjects)
		}
		if role := all["ClusterRole"].(*rbacv1.ClusterRole); binding.RoleRef.Name != role.Name || len(role.Rules) != 1 || fmt.Sprint(role.Rules[0].Verbs, role.Rules[0].Resources) != "[patch] [nodes]" {
			t.Errorf("%s: more or less than to patch nodes: %+v", name, role)
		}
		volumes := map[string]bool{}
		for _, v := range pod.Spec.Volumes {
			volumes[v.Name] = true
			if v.ConfigMap != nil && v.ConfigMap.Name != all["ConfigMap"].(*corev1.ConfigMap).Name {
				t.Errorf("%s: no ConfigMap %s", name, v.ConfigMap.Name)
			}
		}
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, m := range c.VolumeMounts {
				if !volumes[m.Name] {
					t.Errorf("%s: container %s mounts %s, which is no volume", name, c.Name, m.Name)
				}
			}
		}
		class, ok := all["RuntimeClass"].(*nodev1.RuntimeClass)
		if !ok {
			continue
		}
		if !slices.Contains(pod.Spec.InitContainers[0].Args, "--handler="+class.Handler) {
			t.Errorf("%s: the RuntimeClass has handler %s, and %q is installed", name, class.Handler, pod.Spec.InitContainers[0].Args)
		}
		for what, q := range class.Overhead.PodFixed {
			if q.Sign() <= 0 {
				t.Errorf("%s: overhead of %s is %s", name, what, q.String())
			}
		}
	}
}

func TestValuesThatCannotBeAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"{}":                                     "image.repository",
		"image: {repositry: x}":                  "repositry",
		"containerd: {sandboxer: kata}":          "sandboxer",
		"containerd: {defaultSize: big}":         "defaultSize",
		"containerd: {podAnnotations: ['a,b']}":  "podAnnotations",
		"image: {repository: x, digest: latest}": "digest",
		"uninstall: please":                      "uninstall",
		"binDir: bin":                            "binDir",
	} {
		if _, err := render(t, text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error about %s", text, err, says)
		}
	}
}

// TestTheRuntimeClassAloneIsThatOfTheChart: configs/kubernetes/runtimeclass.yaml is
// for hosts that were installed by hand.
func TestTheRuntimeClassAloneIsThatOfTheChart(t *testing.T) {
	text, err := os.ReadFile("../../configs/kubernetes/runtimeclass.yaml")
	if err != nil {
		t.Fatal(err)
	}
	alone := decode(t, decoder(t), string(text)).(*nodev1.RuntimeClass)
	chart := objects(t, values["default"])["RuntimeClass"].(*nodev1.RuntimeClass)
	if alone.Name != chart.Name || alone.Handler != chart.Handler || fmt.Sprint(alone.Overhead) != fmt.Sprint(chart.Overhead) {
		t.Errorf("%+v, and the chart has %+v", alone, chart)
	}
	if alone.Scheduling != nil {
		t.Errorf("it wants labels that nobody sets: %+v", alone.Scheduling)
	}
}
