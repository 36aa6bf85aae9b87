package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// kernelTree writes files (path below the kernel directory → content) and
// returns the directory.
func kernelTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// syntheticOptions is a small complete input: a kernel with every default
// module as a file of its own, but for ext4 and what follows it as built in.
func syntheticOptions(t *testing.T) Options {
	t.Helper()
	const version, modules = "6.1.0-test", "lib/modules/6.1.0-test/"
	files := map[string]string{
		"boot/vmlinuz-" + version:   string(bzImage(t, compressors["gzip"], minimalELF(elf.PT_NOTE, pvhNote()))),
		modules + "modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\nkernel/net/packet/af_packet.ko\n",
	}
	var dep strings.Builder
	for _, line := range []string{
		"kernel/net/vsock.ko.gz:",
		"kernel/net/vmw_vsock_virtio_transport.ko.gz: kernel/net/vsock.ko.gz",
		"kernel/drivers/virtio_blk.ko.gz:", "kernel/fs/erofs.ko.gz:", "kernel/fs/overlay.ko.gz:",
		"kernel/drivers/virtio_net.ko.gz:", "kernel/drivers/virtio-rng.ko.gz:",
		"kernel/drivers/md/dm-mod.ko.gz:", "kernel/drivers/md/dm-verity.ko.gz: kernel/drivers/md/dm-mod.ko.gz",
		"kernel/drivers/scsi/scsi_mod.ko.gz:", "kernel/drivers/scsi/virtio_scsi.ko.gz: kernel/drivers/scsi/scsi_mod.ko.gz",
		"kernel/drivers/scsi/sd_mod.ko.gz: kernel/drivers/scsi/scsi_mod.ko.gz", "kernel/arch/x86/crypto/sha256-ssse3.ko.gz:",
	} {
		dep.WriteString(line + "\n")
		file, _, _ := strings.Cut(line, ":")
		files[modules+file] = string(compress(t, compressors["gzip"], []byte(elf.ELFMAG+" module "+file)))
	}
	files[modules+"modules.dep"] = dep.String()

	dir := kernelTree(t, files)
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, minimalELF(elf.PT_LOAD, nil), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{KernelDir: dir, Agent: agent, Output: filepath.Join(t.TempDir(), "out")}
}

// minimalELF is a 64-bit x86-64 ELF file of one segment with the given content.
func minimalELF(kind elf.ProgType, content []byte) []byte {
	const header, segment = 64, 56
	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: header, Ehsize: header, Phentsize: segment, Phnum: 1,
	})
	size := uint64(len(content))
	write(elf.Prog64{Type: uint32(kind), Off: header + segment, Filesz: size, Memsz: size})
	out.Write(content)
	return out.Bytes()
}

// pvhNote is the PVH entry note, after another one that is not.
func pvhNote() []byte {
	var notes []byte
	for _, kind := range []uint32{1, pvhNoteType} {
		notes = binary.LittleEndian.AppendUint32(notes, uint32(len(pvhNoteName)))
		notes = binary.LittleEndian.AppendUint32(notes, 4)
		notes = binary.LittleEndian.AppendUint32(notes, kind)
		notes = append(notes, pvhNoteName...)
		notes = append(notes, 0, 0, 0, 1)
	}
	return notes
}

// bzImage is a kernel of boot protocol 2.08 whose payload is vmlinux,
// compressed, with its size appended where the kernel's build does that.
func bzImage(t testing.TB, c compressor, vmlinux []byte) []byte {
	t.Helper()
	payload := compress(t, c, vmlinux)
	if !c.ownSize {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(vmlinux)))
	}
	const setupSects, offset = 2, 32
	image := make([]byte, (setupSects+1)*512+offset)
	image[bzSetupSects] = setupSects
	copy(image[bzMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[bzVersion:], bzMinVersion)
	binary.LittleEndian.PutUint32(image[bzPayloadOffset:], offset)
	binary.LittleEndian.PutUint32(image[bzPayloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "trailing signature"...)
}

type compressor struct {
	open    func(io.Writer) (io.WriteCloser, error)
	ownSize bool // the format ends with the size: nothing is appended
}

var compressors = map[string]compressor{
	"gzip": {func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }, true},
	"xz":   {func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }, false},
	"zstd": {func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1)) }, false},
	"lzma": {func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) }, false},
	"lz4": {func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	}, false},
}

func compress(t testing.TB, c compressor, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := c.open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// signed appends to a module what scripts/sign-file appends.
func signed(module string, signature string) string {
	info := make([]byte, signatureInfo)
	binary.BigEndian.PutUint32(info[8:], uint32(len(signature)))
	return fmt.Sprint(module, signature, string(info), signatureMarker)
}
