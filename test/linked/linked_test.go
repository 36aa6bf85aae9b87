package linked

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const (
	tree = "../.."
	shim = "./cmd/containerd-shim-erofsvm-v2"

	// maxShim is the budget of the shim's program, in bytes.
	maxShim = 16_000_000
	// maxInit bounds what all packages allocate before main, in bytes, maxOwnInit what
	// one of ours does. Those of messages have to register them.
	maxInit    = 700_000
	maxOwnInit = 10_000
	ours       = "github.com/erofsvm/erofsvm/"
	generated  = ours + "agentclient/pb"
	// shown is how many modules the table has.
	shown = 15
)

// unneeded are packages that must not come in by the way: the shim speaks ttrpc
// over Unix sockets and nothing else.
var unneeded = []string{
	"google.golang.org/grpc", "net/http", "golang.org/x/net/http2", "crypto/tls", "crypto/x509",
	"text/template", "html/template", "k8s.io/cri-api/pkg/apis/runtime/v1", "testing", "github.com/spf13/cobra",
}

// shimTags are the build tags with which the Makefile builds the shim.
func shimTags(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tree, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^SHIM_BUILD .*-tags (\S+) .*-s -w`).FindSubmatch(text)
	if found == nil {
		t.Fatal("the Makefile has no SHIM_BUILD with -tags and -s -w")
	}
	return string(found[1])
}

func goTool(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return string(out)
}

// packages are those of the shim, with the module of each.
func packages(t *testing.T, tags string) map[string]string {
	t.Helper()
	of := map[string]string{}
	list := goTool(t, "list", "-deps", "-tags", tags, "-f", `{{.ImportPath}} {{with .Module}}{{.Path}}{{else}}std{{end}}`, shim)
	for line := range strings.Lines(list) {
		pkg, module, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			t.Fatalf("go list: %q", line)
		}
		of[pkg] = module
	}
	of["main"] = of["github.com/erofsvm/erofsvm/runtime/shim"]
	return of
}

func TestShimFitsItsBudget(t *testing.T) {
	tags := shimTags(t)
	of := packages(t, tags)
	for _, pkg := range unneeded {
		if _, ok := of[pkg]; ok {
			t.Errorf("the shim links %s; who brings it in: go list -deps -tags %s -f '{{.ImportPath}}: {{.Imports}}' %s", pkg, tags, shim)
		}
	}

	dir := t.TempDir()
	lean, full := filepath.Join(dir, "lean"), filepath.Join(dir, "full")
	goTool(t, "build", "-trimpath", "-tags", tags, "-ldflags", "-s -w -buildid=", "-o", lean, shim)
	goTool(t, "build", "-trimpath", "-tags", tags, "-ldflags", "-buildid=", "-o", full, shim)
	info, err := os.Stat(lean)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := Parts(full, func(pkg string) (string, bool) { m, ok := of[pkg]; return m, ok })
	if err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf("the shim has %.1f MB, of a budget of %.1f; its largest modules:\n", float64(info.Size())/1e6, maxShim/1e6)
	for _, p := range parts[:min(shown, len(parts))] {
		table += fmt.Sprintf("%8.0f kB  %s\n", float64(p.Bytes)/1e3, p.Module)
	}
	t.Log(table)
	if info.Size() > maxShim {
		t.Errorf("the shim has %d bytes, more than %d", info.Size(), maxShim)
	}
	// What cannot be told apart must not hide what can.
	var known, sum uint64
	for _, p := range parts {
		sum += p.Bytes
		if p.Module != Others {
			known += p.Bytes
		}
	}
	if known < sum/2 || known > uint64(info.Size()) {
		t.Errorf("modules have %d of %d bytes: packages are not recognised by their symbols", known, sum)
	}
}

// TestShimMakesLittleBeforeMain: containerd runs the shim three times for a pod (start,
// the one that serves, delete), and each time all its packages are made ready before
// main: what one of them prepares there, a table or a regular expression, every start waits
// for, page fault by page fault.
func TestShimMakesLittleBeforeMain(t *testing.T) {
	program := filepath.Join(t.TempDir(), "shim")
	goTool(t, "build", "-trimpath", "-tags", shimTags(t), "-ldflags", "-s -w -buildid=", "-o", program, shim)
	cmd := exec.CommandContext(t.Context(), program, "-v")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var sum, packages int
	line := regexp.MustCompile(`(?m)^init (\S+) @.* clock, (\d+) bytes, \d+ allocs$`)
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		bytes, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		sum, packages = sum+bytes, packages+1
		own := strings.HasPrefix(m[1], ours) && !strings.HasPrefix(m[1], generated)
		if own && bytes > maxOwnInit {
			t.Errorf("%s allocates %d bytes before main: do it on first use (sync.OnceValue)", m[1], bytes)
		}
	}
	if packages == 0 {
		t.Fatalf("the runtime has told of no package:\n%s", out)
	}
	t.Logf("%d packages allocate %d bytes before main", packages, sum)
	if sum > maxInit {
		t.Errorf("packages allocate %d bytes before main, more than %d", sum, maxInit)
	}
}

func TestPackageOfASymbol(t *testing.T) {
	for symbol, want := range map[string]string{
		"main.main":                          "main",
		"net/netip.(*Addr).String":           "net/netip",
		"type:.eq.a.example/b/c.T":           "a.example/b/c",
		"type:*a.example/b.T":                "a.example/b",
		"go:itab.*os.File,io.Reader":         "os",
		"slices.insert[go.shape.[]a.b/c.D]":  "slices",
		"gopkg.in/yaml%2ev3.parse":           "gopkg.in/yaml.v3",
		"a.example/b%2ec.init.0":             "a.example/b.c",
		"go:func.*":                          "go:func",
		"type:func(a.example/b.T) error":     "",
		"_rt0_amd64":                         "",
		"a.example/b.F.func1":                "a.example/b",
		"a.example/b.(*L[a.example/c.T]).Do": "a.example/b",
	} {
		if got := packageOf(symbol); got != want {
			t.Errorf("%s: %q, want %q", symbol, got, want)
		}
	}
}
