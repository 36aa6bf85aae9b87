package policy

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// everywhere are hosts that are no trace of a machine: where the code lives.
var everywhere = map[string]bool{"github.com": true}

// someonesHome matches paths below a person's home directory. That of root has
// the same name in every image, so it is no trace of anyone.
var someonesHome = regexp.MustCompile(`(^|[\s"'=(:])/(home|Users)/[a-z][a-z0-9_-]*/`)

// TestNoTraceOfTheBuildMachine: no file names the folder of the checkout, the
// Go caches, a mirror or a proxy of the machine that the test runs on.
func TestNoTraceOfTheBuildMachine(t *testing.T) {
	root := moduleRoot(t)
	traces := machineTraces(t, root)
	for _, name := range treeFiles(t, root) {
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !isText(data) {
			continue
		}
		text := string(data)
		for trace, what := range traces {
			if at := strings.Index(text, trace); at >= 0 {
				t.Errorf("%s:%d names %s (%s)", name, 1+strings.Count(text[:at], "\n"), what, trace)
			}
		}
		if at := someonesHome.FindStringIndex(text); at != nil {
			t.Errorf("%s:%d: %q is a path on somebody's machine", name, 1+strings.Count(text[:at[1]], "\n"), strings.TrimSpace(text[at[0]:at[1]]))
		}
	}
}

// machineTraces maps strings that only this machine knows to what they are.
func machineTraces(t *testing.T, root string) map[string]string {
	t.Helper()
	traces := make(map[string]string)
	if strings.Count(root, "/") > 1 { // "/src" is too short to mean anything
		traces[root] = "the folder of this checkout"
	}
	env, err := exec.Command("go", "env", "GOMODCACHE", "GOCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	lines := strings.Split(string(env), "\n")
	traces[lines[0]] = "the module cache"
	traces[lines[1]] = "the build cache"
	addHosts(traces, lines[2], "the module proxy")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		addHosts(traces, os.Getenv(name), "a proxy")
	}
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*", "/etc/apt/apt.conf.d/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil {
				addHosts(traces, string(data), "a package mirror")
			}
		}
	}
	delete(traces, "")
	return traces
}

var urls = regexp.MustCompile(`https?://[^\s"',;|]+`)

func addHosts(traces map[string]string, text, what string) {
	for _, found := range urls.FindAllString(text, -1) {
		u, err := url.Parse(found)
		if err != nil || u.Hostname() == "" || everywhere[u.Hostname()] {
			continue
		}
		traces[u.Hostname()] = what
	}
}
