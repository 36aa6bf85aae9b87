package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// errTooLarge is wrapped by every refusal of an input for its size.
var errTooLarge = errors.New("too large")

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := readAllBounded(file, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// readAllBounded reads to the end, and fails instead of cutting off at limit.
func readAllBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLarge, limit)
	}
	return data, nil
}

// writeAtomically makes path hold data, wholly or not at all, also across a
// crash of the machine.
func writeAtomically(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // a no-op after the rename
	if err := errors.Join(writeAndSync(file, data), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(file.Name(), path)
}

func writeAndSync(file *os.File, data []byte) error {
	if _, err := file.Write(data); err != nil {
		return err
	}
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	return file.Sync()
}

// windowLimit bounds the history that a decompressor keeps, in bytes. The
// kernel's build uses `zstd -22 --ultra`, whose window is 128 MiB
// (scripts/Makefile.lib, cmd_zstd22).
const windowLimit = 128 << 20

// decompressor opens a stream of one format, known by its first bytes.
type decompressor struct {
	name  string
	magic string
	open  func(io.Reader) (io.Reader, error)
}

// decompressors are the formats of kernel payloads and of modules
// (KERNEL_* in init/Kconfig, MODULE_COMPRESS_* in kernel/module/Kconfig).
var decompressors = []decompressor{
	{"gzip", "\x1f\x8b", func(r io.Reader) (io.Reader, error) { return openGzip(r) }},
	{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) {
		return xz.ReaderConfig{DictCap: windowLimit}.NewReader(r)
	}},
	{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowLimit))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{"lz4", "\x02\x21\x4c\x18", func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", func(r io.Reader) (io.Reader, error) {
		return lzma.ReaderConfig{DictCap: windowLimit}.NewReader(r)
	}},
}

// openGzip reads one member and ignores what follows: a kernel payload is
// padded after it.
func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return z, nil
}

// xzFooter ends every xz stream (xz-file-format.txt, 2.1.2.4). The xz package
// takes a file that is cut off between two blocks for a whole one.
const xzFooter = "YZ"

// decompress unpacks data, whatever of the known formats it is in, to at most
// limit bytes; data in none of them comes back as it is. Where trailer is true
// the last four bytes are the unpacked size and must agree: the kernel's build
// appends them to every format but gzip, which has them itself
// (scripts/Makefile.lib, size_append).
func decompress(data []byte, limit int64, trailer bool) ([]byte, error) {
	for _, format := range decompressors {
		if !bytes.HasPrefix(data, []byte(format.magic)) {
			continue
		}
		want := int64(-1)
		if trailer && format.name != "gzip" {
			body := len(data) - 4
			want = int64(binary.LittleEndian.Uint32(data[body:]))
			data = data[:body]
			limit = min(limit, want)
		}
		if format.name == "xz" && !bytes.HasSuffix(data, []byte(xzFooter)) {
			return nil, fmt.Errorf("xz: %w", io.ErrUnexpectedEOF)
		}
		stream, err := format.open(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", format.name, err)
		}
		if closer, ok := stream.(io.Closer); ok {
			defer closer.Close()
		}
		plain, err := readAllBounded(stream, limit)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", format.name, err)
		}
		if want >= 0 && int64(len(plain)) != want {
			return nil, fmt.Errorf("%s: unpacks to %d bytes, says %d", format.name, len(plain), want)
		}
		return plain, nil
	}
	return data, nil
}
