package policy

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/erofsvm/erofsvm"

// generatedMark is the line that `go help generate` asks of generated files.
var generatedMark = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// goFile is one Go source file of the tree. Files are read whatever their build
// constraints say, so that no platform or tag is a way around a rule.
type goFile struct {
	path      string // from the module root, with slashes
	dir       string // its package's directory from the module root, "." for the root
	isTest    bool
	generated bool
	text      []byte
	syntax    *ast.File
	fset      *token.FileSet
}

// imports are the packages of this module that the file imports, as directories
// from the module root.
func (f *goFile) imports(t *testing.T) []string {
	t.Helper()
	var own []string
	for _, spec := range f.syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatalf("%s: import %s: %v", f.path, spec.Path.Value, err)
		}
		if rest, ok := strings.CutPrefix(name, module+"/"); ok {
			own = append(own, rest)
		} else if name == module {
			own = append(own, ".")
		}
	}
	return own
}

func (f *goFile) line(pos token.Pos) int { return f.fset.Position(pos).Line }

// moduleRoot is the folder of go.mod above the working directory of the test.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the working directory: run the test inside the module")
		}
		dir = up
	}
}

// treeFiles lists what belongs to the source tree, from its root: what git
// tracks or would track, or, where the tree is no git checkout, every file that
// is not below a hidden folder.
func treeFiles(t *testing.T, root string) []string {
	t.Helper()
	list := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if out, err := list.Output(); err == nil {
		var files []string
		for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
			// What is deleted but not committed yet is still listed.
			if info, err := os.Lstat(filepath.Join(root, name)); err == nil && info.Mode().IsRegular() {
				files = append(files, name)
			}
		}
		return files
	}
	var files []string
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && name != root && strings.HasPrefix(entry.Name(), ".") {
			return filepath.SkipDir
		}
		if entry.Type().IsRegular() {
			rel, err := filepath.Rel(root, name)
			if err != nil {
				return err
			}
			files = append(files, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// goFiles parses every Go file of the tree.
func goFiles(t *testing.T) []*goFile {
	t.Helper()
	root := moduleRoot(t)
	var files []*goFile
	for _, name := range treeFiles(t, root) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "/testdata/") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		syntax, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, &goFile{
			path:      name,
			dir:       path.Dir(name),
			isTest:    strings.HasSuffix(name, "_test.go"),
			generated: generatedMark.Match(text),
			text:      text,
			syntax:    syntax,
			fset:      fset,
		})
	}
	if len(files) == 0 {
		t.Fatalf("no Go file below %s", root)
	}
	return files
}

// packages groups files by directory.
func packages(files []*goFile) map[string][]*goFile {
	byDir := make(map[string][]*goFile)
	for _, f := range files {
		byDir[f.dir] = append(byDir[f.dir], f)
	}
	return byDir
}

// isText says whether a file is one that people read: no NUL in its beginning.
func isText(data []byte) bool {
	return !bytes.Contains(data[:min(len(data), 8000)], []byte{0})
}
