// Package image builds the OCI images that the tests and the demo run: a real
// one, of Debian packages and of layers made to be difficult, and tiny ones
// that boot fast.
//
// It owns the archives in Inputs.Out and the content of every layer in them.
// Same inputs, same digests: packages are unpacked here, without the scripts
// and the clock of an installation, and everything else is generated. It needs
// no root, runs no program, never touches the network, and writes nowhere
// outside Inputs.Out. Any goroutine may call it; of two builds into one
// directory at once the last one's archives stay, each of them whole.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// The images, by the names under which containerd imports them.
const (
	// FirstLight is Debian with a server and more than twelve layers. Its
	// command checks what the container sees and ends with 0 or 1.
	FirstLight = "erofsvm.test/first-light:latest"
	// One is busybox in a single layer.
	One = "erofsvm.test/one:latest"
	// Two is One with a layer that replaces and deletes files.
	Two = "erofsvm.test/two:latest"
	// Pause is One with the command of a pause container: it waits for its end.
	Pause = "erofsvm.test/pause:latest"
)

// Archive is the file with one of the images in an output directory, for
// `ctr image import`.
func Archive(out, image string) string { return filepath.Join(out, archiveName(image)) }

// archiveName makes "first-light.tar" of "erofsvm.test/first-light:latest".
func archiveName(image string) string {
	name, _, _ := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return name + ".tar"
}

// summaryFile tells the next build what is there, and people what is in it.
const summaryFile = "images.json"

// ErrInput says that an input is missing or not what it should be.
var ErrInput = errors.New("test image input")

// Inputs are what the images are made of, and where they go.
type Inputs struct {
	// Base holds rootfs.tar, a minimal Debian root, and debs/ with packages
	// and a file debs/layers: a line for each package, first its name, then
	// the files that it needs beyond the lines before it.
	Base string
	// TreeList is the static binary of test/tree/cmd/tree-list.
	TreeList string
	// Out is the directory for the archives; it is made if it is missing.
	Out string
}

// Layer is one layer of an image.
type Layer struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"` // as it is in the archive
	DiffID string `json:"diffID"`
	Gzip   bool   `json:"gzip"`
}

// Image is one archive that Build made or found.
type Image struct {
	Name   string  `json:"name"`
	Bytes  int64   `json:"bytes"`  // of the archive
	Digest string  `json:"digest"` // of the manifest
	Layers []Layer `json:"layers"` // lowest first
}

// Summary is what is in the output directory.
type Summary struct {
	// Key stands for the inputs and the builder.
	Key    string  `json:"key"`
	Images []Image `json:"images"`
	// Cached says that nothing had to be built.
	Cached bool `json:"-"`
}

// Build makes the images, or finds them made of the same inputs.
func Build(in Inputs) (Summary, error) {
	key, err := in.key()
	if err != nil {
		return Summary{}, err
	}
	if found, ok := cached(in.Out, key); ok {
		return found, nil
	}
	recipes, err := in.recipes()
	if err != nil {
		return Summary{}, err
	}
	if err := os.MkdirAll(in.Out, 0o755); err != nil {
		return Summary{}, err
	}
	scratch, err := os.MkdirTemp(in.Out, ".build.*")
	if err != nil {
		return Summary{}, err
	}
	defer os.RemoveAll(scratch)

	summary := Summary{Key: key}
	for _, r := range recipes {
		image, err := r.build(in.Out, scratch)
		if err != nil {
			return Summary{}, fmt.Errorf("build %s: %w", r.name, err)
		}
		summary.Images = append(summary.Images, image)
	}
	data, err := json.MarshalIndent(summary, "", "  ")
	if err != nil {
		return Summary{}, err
	}
	temporary := filepath.Join(scratch, summaryFile)
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return Summary{}, err
	}
	return summary, os.Rename(temporary, filepath.Join(in.Out, summaryFile))
}

// key stands for the inputs: the names, sizes and times of the files, so that
// it takes no reading of them, and the digests of the two programs, which are
// built anew more often than they change.
func (in Inputs) key() (string, error) {
	builder, err := os.Executable()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, program := range []string{builder, in.TreeList} {
		if err := copyFile(hash, program); err != nil {
			return "", fmt.Errorf("%w: %w", ErrInput, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(in.Base, "debs", "*"))
	if err != nil {
		return "", err
	}
	for _, file := range append(files, filepath.Join(in.Base, "rootfs.tar")) {
		info, err := os.Stat(file)
		if err != nil {
			return "", fmt.Errorf("%w: %w; test/setup/tools.sh base debs makes it", ErrInput, err)
		}
		fmt.Fprintf(hash, "%q %d %d\n", info.Name(), info.Size(), info.ModTime().UnixNano())
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func copyFile(w io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

// cached reads the summary, and believes it if it has the key and the archives
// are as long as it says.
func cached(out, key string) (Summary, bool) {
	data, err := os.ReadFile(filepath.Join(out, summaryFile))
	if err != nil {
		return Summary{}, false
	}
	var found Summary
	if err := json.Unmarshal(data, &found); err != nil || found.Key != key {
		return Summary{}, false
	}
	for _, image := range found.Images {
		info, err := os.Stat(Archive(out, image.Name))
		if err != nil || info.Size() != image.Bytes {
			return Summary{}, false
		}
	}
	found.Cached = true
	return found, true
}

// packageFiles reads debs/layers and returns the files of each named package.
func (in Inputs) packageFiles(names []string) (map[string][]string, error) {
	path := filepath.Join(in.Base, "debs", "layers")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; test/setup/tools.sh debs makes it", ErrInput, err)
	}
	found := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !slices.Contains(names, fields[0]) {
			continue
		}
		for _, file := range fields[1:] {
			if filepath.Base(file) != file {
				return nil, fmt.Errorf("%w: %s: %q is not a file name", ErrInput, path, file)
			}
			found[fields[0]] = append(found[fields[0]], filepath.Join(in.Base, "debs", file))
		}
	}
	for _, name := range names {
		if len(found[name]) == 0 {
			return nil, fmt.Errorf("%w: %s has no package %s", ErrInput, path, name)
		}
	}
	return found, nil
}

// WriteTable writes the summary for a person.
func (s Summary) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, image := range s.Images {
		fmt.Fprintf(table, "%s\t%d layers\t%.1f MiB\t%s\n",
			image.Name, len(image.Layers), mebibytes(image.Bytes), archiveName(image.Name))
		for i, layer := range image.Layers {
			packing := ""
			if layer.Gzip {
				packing = "gzip"
			}
			fmt.Fprintf(table, "  %2d %s\t%s\t%.1f MiB\t%s\n",
				i+1, layer.Name, layer.DiffID[:len("sha256:")+12], mebibytes(layer.Bytes), packing)
		}
	}
	return table.Flush()
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
