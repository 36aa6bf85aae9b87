// Package hostroot is a host seen from its root directory, which is / or wherever
// a container has it mounted.
//
// It owns the way from a path of the host to one of this process: a symbolic link
// in it leads to where it leads on the host. A Root is plain data, is never
// changed after New, and its methods may be called from any goroutine. The package
// writes nothing.
package hostroot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// servicePath is where a service of the host finds programs: systemd's default
// (systemd.exec(5), "Environment Variables in Spawned Processes") and the
// directories that are links to these where there is but one.
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	// maxFile bounds a file that is read at once, in bytes.
	maxFile = 4 << 20
	// maxOutput bounds what is kept of a program's output, in bytes.
	maxOutput = 1 << 20
	// killDelay is how long a killed program may hold on to its pipes.
	killDelay = time.Second
)

// Root is a host.
type Root struct {
	dir  string
	path []string
}

// New is the host whose root directory is dir. PATH is that of a service of the
// host, or, if searchPath is not empty, that.
func New(dir, searchPath string) (Root, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Root{}, err
	}
	if info, err := os.Stat(abs); err != nil {
		return Root{}, err
	} else if !info.IsDir() {
		return Root{}, fmt.Errorf("%s is not a directory", abs)
	}
	if searchPath == "" {
		searchPath = servicePath
	}
	r := Root{dir: abs}
	for dir := range strings.SplitSeq(searchPath, ":") {
		if !path.IsAbs(dir) {
			return Root{}, fmt.Errorf("PATH %q has a directory that is not absolute", searchPath)
		}
		r.path = append(r.path, path.Clean(dir))
	}
	return r, nil
}

// Dir is the root directory.
func (r Root) Dir() string { return r.dir }

// InPath says whether a service of the host finds the programs in a directory.
func (r Root) InPath(dir string) bool { return slices.Contains(r.path, path.Clean(dir)) }

// Real is where this process finds a path of the host, whether or not there is
// anything. Links are followed but for the last element.
func (r Root) Real(name string) (string, error) {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%q is not an absolute path", name)
	}
	name = path.Clean(name)
	dir, err := securejoin.SecureJoin(r.dir, path.Dir(name))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, path.Base(name)), nil
}

// follow is Real with the last element followed too.
func (r Root) follow(name string) (string, error) {
	if !path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%q is not an absolute path", name)
	}
	return securejoin.SecureJoin(r.dir, path.Clean(name))
}

// Open opens a file for reading.
func (r Root) Open(name string) (*os.File, error) {
	real, err := r.follow(name)
	if err != nil {
		return nil, err
	}
	return os.Open(real)
}

// ReadFile returns a file of at most 4 MiB.
func (r Root) ReadFile(name string) ([]byte, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return data, nil
}

// Stat follows links.
func (r Root) Stat(name string) (fs.FileInfo, error) {
	real, err := r.follow(name)
	if err != nil {
		return nil, err
	}
	return os.Stat(real)
}

// Glob returns the paths of the host that a pattern matches, in its last element
// alone if there are links before.
func (r Root) Glob(pattern string) ([]string, error) {
	dir, base := path.Split(path.Clean(pattern))
	real, err := r.follow(dir)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(real, base))
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(dir, `*?[\`) {
		for i, name := range found {
			found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(name, r.dir), "/")
		}
		return found, nil
	}
	for i, name := range found {
		found[i] = path.Join(dir, filepath.Base(name))
	}
	return found, nil
}

// LookPath finds a program by its name in PATH, or by its absolute path, and
// returns its path on the host.
func (r Root) LookPath(name string) (string, error) {
	candidates := []string{name}
	if !path.IsAbs(name) {
		if strings.Contains(name, "/") {
			return "", fmt.Errorf("%s: neither a name nor an absolute path", name)
		}
		candidates = nil
		for _, dir := range r.path {
			candidates = append(candidates, path.Join(dir, name))
		}
	}
	for _, c := range candidates {
		if info, err := r.Stat(c); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return c, nil
		}
	}
	if path.IsAbs(name) {
		return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, strings.Join(r.path, ":"))
}

// Run runs a program of the host with its root directory as its own, which takes
// root if it is another than this process's, and returns what it wrote to its
// standard output. It has nothing of this process's environment but PATH, and
// what env adds.
func (r Root) Run(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	found, err := r.LookPath(program)
	if err != nil {
		return nil, err
	}
	var out, said bounded
	cmd := exec.CommandContext(ctx, found, args...)
	cmd.Env = append([]string{"PATH=" + strings.Join(r.path, ":"), "HOME=/root", "LC_ALL=C"}, env...)
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.WaitDelay = &out, &said, "/", killDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if r.dir != "/" {
		cmd.SysProcAttr.Chroot = r.dir
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return nil, fmt.Errorf("%s %s: %w: %s", found, strings.Join(args, " "), err, said.tail())
	}
	// Some print their version there.
	if out.kept.Len() == 0 {
		return said.kept.Bytes(), nil
	}
	return out.kept.Bytes(), nil
}

// bounded keeps the beginning of what is written to it. The buffer is not embedded:
// its ReadFrom would go round Write.
type bounded struct{ kept bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.kept.Len(); room > 0 {
		b.kept.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// tail is the last line, in which programs say why they ended.
func (b *bounded) tail() string {
	text := bytes.TrimSpace(b.kept.Bytes())
	if i := bytes.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	return string(text[:min(len(text), 500)])
}
