package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/erofsvm/erofsvm/guest/layout"
)

// Digest names a content. It carries no path: those of the building machine
// have no place in the image.
type Digest struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// ModuleDigest is a module of the image, uncompressed.
type ModuleDigest struct {
	Stage string `json:"stage"`
	Digest
}

// Report is what a build made of what; its JSON is the manifest file.
type Report struct {
	KernelVersion string `json:"kernelVersion"`
	KernelFormat  string `json:"kernelFormat"` // FormatELF or FormatBzImage
	// KernelNote says why the kernel is not FormatELF, and is empty if it is.
	KernelNote string   `json:"kernelNote,omitempty"`
	Inputs     []Digest `json:"inputs"`
	// Modules stand in the order of loading.
	Modules []ModuleDigest `json:"modules"`
	Outputs []Digest       `json:"outputs"`
}

func digest(name string, data []byte) Digest {
	sum := sha256.Sum256(data)
	return Digest{Name: name, Bytes: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}

func (r *Report) addInput(name string, data []byte) {
	r.Inputs = append(r.Inputs, digest(name, data))
}

func (r *Report) addOutput(name string, data []byte) {
	r.Outputs = append(r.Outputs, digest(name, data))
}

func (r *Report) addModules(modules []Module) {
	for _, m := range modules {
		r.Modules = append(r.Modules, ModuleDigest{Stage: m.Stage, Digest: digest(m.File, m.data)})
	}
}

func (r Report) encode() ([]byte, error) {
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(r); err != nil {
		return nil, err
	}
	return data.Bytes(), nil
}

// WriteTable writes the report for a person: what the image is made of, each
// part with its size.
func (r Report) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(what string, size int64, about string) {
		fmt.Fprintf(table, "%s\t%s\t  %s\n", mebibytes(size), what, about)
	}
	for _, out := range r.Outputs {
		switch out.Name {
		case Kernel:
			row(out.Name, out.Bytes, r.KernelVersion+" ("+r.KernelFormat+")")
		case Initrd:
			row(out.Name, out.Bytes, "of which")
		}
	}
	for _, in := range r.Inputs {
		if in.Name == "agent" {
			row(layout.Init, in.Bytes, "the agent")
		}
	}
	for _, stage := range layout.Stages() {
		var total int64
		var names []byte
		for _, m := range r.Modules {
			if m.Stage == stage {
				total += m.Bytes
				names = append(names, ' ')
				names = append(names, m.Name[:len(m.Name)-len(".ko")]...)
			}
		}
		if len(names) > 0 {
			row(layout.ModuleDir, total, stage+":"+string(names))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if r.KernelNote != "" {
		_, err := fmt.Fprintf(w, "kernel kept compressed: %s\n", r.KernelNote)
		return err
	}
	return nil
}

func mebibytes(n int64) string {
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
