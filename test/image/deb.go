package image

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// The format of deb(5): an ar(1) archive whose member data.tar, compressed or
// not, is the package's files.
const (
	arMagic  = "!<arch>\n"
	arHeader = 60
	arEnd    = "`\n"
)

// maxDebData bounds what a package may unpack to, in bytes.
const maxDebData = 1 << 30

// unpackDeb adds the files of a package to the layer. Its maintainer scripts do
// not run.
func (l *layer) unpackDeb(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := debData(bufio.NewReader(file))
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInput, path, err)
	}
	if err := l.unpack(tar.NewReader(data)); err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	return nil
}

// unpackTar adds the files of a tar archive to the layer.
func (l *layer) unpackTar(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := l.unpack(tar.NewReader(bufio.NewReaderSize(file, 1<<20))); err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	return nil
}

// debData finds the member data.tar and returns a reader of it, uncompressed.
func debData(r io.Reader) (io.Reader, error) {
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return nil, errors.New("not a Debian package: no ar archive")
	}
	header := make([]byte, arHeader)
	for {
		if _, err := io.ReadFull(r, header); err != nil {
			return nil, fmt.Errorf("no data.tar: %w", err)
		}
		if string(header[58:]) != arEnd {
			return nil, errors.New("a member's header is damaged")
		}
		name := strings.TrimRight(string(header[:16]), " /")
		size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("member %q has a size of %q", name, header[48:58])
		}
		if suffix, ok := strings.CutPrefix(name, "data.tar"); ok {
			plain, err := openData(suffix, io.LimitReader(r, size))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return io.LimitReader(plain, maxDebData), nil
		}
		// Members start at even places.
		if _, err := io.CopyN(io.Discard, r, size+size%2); err != nil {
			return nil, fmt.Errorf("member %q: %w", name, err)
		}
	}
}

func openData(suffix string, r io.Reader) (io.Reader, error) {
	switch suffix {
	case "":
		return r, nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.NewReader(bufio.NewReader(r))
	case ".zst":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	}
	return nil, fmt.Errorf("no decompressor for %q", suffix)
}
