package dropin

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

var update = flag.Bool("update", false, "write the golden files anew")

func in(versions ...int) Existing { return Existing{Found: len(versions) > 0, Versions: versions} }

func TestRenderedFilesAreThoseOfTheGoldenOnes(t *testing.T) {
	all := Default()
	all.Handler, all.ShimPath, all.Sandboxer = "vm.gold", "/opt/bin/"+Shim, "shim"
	all.Fsverity, all.Immutable, all.DmverityMode, all.TarIndex = true, true, "on", true
	all.MkfsOptions = []string{`-z"lz4\`, "-T0"}
	all.PodAnnotations = nil
	shim := Default()
	shim.Sandboxer = "shim"
	for name, tc := range map[string]struct {
		release Release
		beside  Existing
		options Options
	}{
		"2.2-beside-v2":     {Release{2, 2}, in(2), Default()},
		"2.2-beside-v3":     {Release{2, 2}, in(3), Default()},
		"2.2-own-unpack":    {Release{2, 2}, Existing{Found: true, Versions: []int{3}, Unpacks: []string{"overlayfs"}}, Default()},
		"2.2-unpacks-erofs": {Release{2, 2}, Existing{Found: true, Versions: []int{3}, Unpacks: []string{"overlayfs", "erofs"}}, Default()},
		"2.3":               {Release{2, 3}, in(2, 3), Default()},
		"2.3-shim":          {Release{2, 3}, in(), shim},
		"2.4":               {Release{2, 4}, in(), Default()},
		"2.4-all":           {Release{2, 4}, in(4), all},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Render(tc.release, tc.beside, tc.options)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".toml")
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
				t.Errorf("it is now (go test -update writes it):\n%s", got)
			}
			var doc map[string]any
			if err := toml.Unmarshal(got, &doc); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTheDocumentationShowsTheFile but for its comments.
func TestTheDocumentationShowsTheFile(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	file, err := Render(Release{2, 4}, in(), Default())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(file)) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#") {
			lines = append(lines, line)
		}
	}
	if text := strings.Join(lines, ""); !strings.Contains(string(page), "```toml\n"+text+"```") {
		t.Errorf("docs/kubernetes.md lacks\n%s", text)
	}
}

func TestWhatContainerdWouldMixUpIsRefused(t *testing.T) {
	for _, tc := range []struct {
		release Release
		beside  Existing
		ok      bool
	}{
		{Release{2, 2}, in(), true},
		{Release{2, 2}, in(2), true},
		{Release{2, 2}, in(2, 3), false},
		{Release{2, 2}, in(0), false},
		{Release{2, 2}, in(1), false},
		{Release{2, 2}, in(4), false},
		{Release{2, 3}, in(2, 3, 4), true},
		{Release{2, 9}, in(4), true},
		{Release{2, 1}, in(3), false},
		{Release{1, 7}, in(2), false},
		{Release{3, 0}, in(4), false},
	} {
		if _, err := Render(tc.release, tc.beside, Default()); (err == nil) != tc.ok {
			t.Errorf("%s beside version %v: %v", tc.release, tc.beside.Versions, err)
		}
	}
}

func TestAListOfTheAdministratorsThatLacksEROFSIsSaid(t *testing.T) {
	own := Existing{Found: true, Versions: []int{3}, Unpacks: []string{"overlayfs"}}
	if _, err := Render(Release{2, 4}, own, Default()); err == nil || !strings.Contains(err.Error(), "unpack_config") {
		t.Errorf("%v", err)
	}
	own.Unpacks = append(own.Unpacks, "erofs")
	if _, err := Render(Release{2, 4}, own, Default()); err != nil {
		t.Error(err)
	}
}

func TestABadOptionIsNamed(t *testing.T) {
	for what, change := range map[string]func(*Options){
		"handler":           func(o *Options) { o.Handler = "x\"]\n[evil" },
		"sandboxer":         func(o *Options) { o.Sandboxer = "" },
		"size":              func(o *Options) { o.DefaultSize = "0" },
		"path of the shim":  func(o *Options) { o.ShimPath = "shim" },
		"dm-verity mode":    func(o *Options) { o.DmverityMode = "maybe" },
		"control character": func(o *Options) { o.MkfsOptions = []string{"a\nb"} },
		"is empty":          func(o *Options) { o.PodAnnotations = []string{""} },
	} {
		o := Default()
		change(&o)
		if _, err := Render(Release{2, 4}, in(), o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want an error about the %s", err, what)
		}
	}
	shim := Default()
	shim.Sandboxer = "shim"
	if _, err := Render(Release{2, 2}, in(3), shim); err == nil || !strings.Contains(err.Error(), "2.3") {
		t.Errorf("the Sandbox API with containerd 2.2: %v", err)
	}
	verity := Default()
	verity.DmverityMode = "on"
	if _, err := Render(Release{2, 2}, in(3), verity); err == nil || !strings.Contains(err.Error(), "2.3") {
		t.Errorf("dm-verity with containerd 2.2: %v", err)
	}
}

func TestTextOfAnyKindIsQuoted(t *testing.T) {
	o := Default()
	o.MkfsOptions = []string{`"`, `\`, `\"`, `'`, `{{.}}`, `#`, `]`}
	data, err := Render(Release{2, 4}, in(), o)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Plugins map[string]struct {
			MkfsOptions []string `toml:"mkfs_options"`
		} `toml:"plugins"`
	}
	if err := toml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	if got := doc.Plugins["io.containerd.differ.v1.erofs"].MkfsOptions; !slices.Equal(got, o.MkfsOptions) {
		t.Errorf("%q, want %q", got, o.MkfsOptions)
	}
}

func TestReleasesAreReadFromWhatContainerdSays(t *testing.T) {
	for text, want := range map[string]Release{
		"containerd github.com/containerd/containerd/v2 v2.4.2 ":                           {2, 4},
		"containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da":         {1, 7},
		"containerd github.com/containerd/containerd/v2 2.2.9+unknown\n":                   {2, 2},
		"containerd github.com/k3s-io/containerd/v2 v2.3.7-k3s1 ":                          {2, 3},
		"containerd github.com/containerd/containerd/v2 v2.5.0-beta.1 9f1f5e0d5ee4a2f.m\n": {2, 5},
		"2.3.7": {2, 3},
		"2.3":   {2, 3},
	} {
		if got, err := ParseRelease(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "containerd", "v2", "two.four", "containerd/v2"} {
		if got, err := ParseRelease(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

// tree is a file system in memory.
type tree map[string]string

func (f tree) ReadFile(name string) ([]byte, error) {
	text, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

func (f tree) Glob(pattern string) (found []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, name)
		}
	}
	return found, nil
}

const mainFile, ours = "/etc/containerd/config.toml", "/etc/containerd/conf.d/erofsvm.toml"

func TestImportsAreFoundAsContainerdFindsThem(t *testing.T) {
	for name, tc := range map[string]struct {
		files tree
		want  Existing
	}{
		"no file":              {tree{}, Existing{}},
		"no file but a folder": {tree{"/etc/containerd/conf.d/x.toml": "version = 3"}, Existing{}},
		"no import":            {tree{mainFile: "version = 2"}, Existing{Found: true, Versions: []int{2}}},
		"the folder":           {tree{mainFile: "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']"}, Existing{true, true, []int{3}, nil}},
		"relative":             {tree{mainFile: "version = 3\nimports = ['conf.d/*.toml']"}, Existing{true, true, []int{3}, nil}},
		"by name":              {tree{mainFile: "version = 3\nimports = ['/etc/containerd/./conf.d/erofsvm.toml']"}, Existing{true, true, []int{3}, nil}},
		"another folder":       {tree{mainFile: "version = 3\nimports = ['/etc/containerd/other.d/*.toml']"}, Existing{true, false, []int{3}, nil}},
		"another name":         {tree{mainFile: "version = 3\nimports = ['conf.d/99-*.toml']"}, Existing{true, false, []int{3}, nil}},
		"no pattern":           {tree{mainFile: "version = 3\nimports = ['conf.d/erofsvm?toml']", "/etc/containerd/conf.d/erofsvm?toml": ""}, Existing{true, false, []int{0, 3}, nil}},
		"through another": {tree{
			mainFile: "version = 3\nimports = ['/etc/a.toml']", "/etc/a.toml": "version = 2\nimports = ['containerd/conf.d/*.toml']",
		}, Existing{true, true, []int{2, 3}, nil}},
		"unpacks": {tree{
			mainFile: "version = 3\nimports = ['conf.d/*.toml']", "/etc/containerd/conf.d/a.toml": "version = 3\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'x'",
		}, Existing{true, true, []int{3}, []string{"x"}}},
		"in a circle": {tree{mainFile: "version = 3\nimports = ['config.toml', '*.toml']"}, Existing{true, false, []int{3}, nil}},
		"ours is there": {tree{
			mainFile: "version = 2\nimports = ['conf.d/*.toml']", ours: "version = 4",
		}, Existing{true, true, []int{2}, nil}},
	} {
		got, err := Look(tc.files, mainFile, ours)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tc.want)
		}
	}
}

func TestAConfigurationThatCannotBeReadIsNamed(t *testing.T) {
	for name, files := range map[string]tree{
		"/etc/containerd/config.toml": {mainFile: "version = "},
		"/etc/gone.toml":              {mainFile: "imports = ['/etc/gone.toml']"},
		"[":                           {mainFile: "imports = ['conf.d/[*']", "/etc/containerd/x": ""},
	} {
		if _, err := Look(files, mainFile, ours); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want an error that names %s", err, name)
		}
	}
}

func FuzzLook(f *testing.F) {
	f.Add("version = 3\nimports = ['conf.d/*.toml']")
	f.Add("imports = ['*', '/*/*/*']")
	f.Fuzz(func(t *testing.T, text string) {
		files := tree{mainFile: text, "/etc/containerd/conf.d/other.toml": text}
		e, err := Look(files, mainFile, ours)
		if err == nil && (!e.Found || len(e.Versions) == 0 || len(e.Versions) > 2) {
			t.Fatalf("%+v of %q", e, text)
		}
	})
}

func ExampleRender() {
	_, err := Render(Release{1, 7}, Existing{}, Default())
	fmt.Println(err)
	// Output: containerd 1.7: 2.2 or a later 2.x is wanted, whose EROFS snapshotter gives layers to a runtime unmounted
}
