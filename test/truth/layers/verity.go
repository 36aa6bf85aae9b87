package layers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/go-dmverity/pkg/utils"
	"github.com/containerd/go-dmverity/pkg/verity"
	"github.com/google/uuid"
)

// verityBlock is the length, in bytes, of the blocks of data and of hashes that
// containerd's differ uses.
const verityBlock = 4096

// Protected is Plain with a hash tree behind the filesystem.
func (m Maker) Protected(ctx context.Context, name string, tar []byte) (Lower, error) {
	path, err := m.Plain(ctx, name, tar)
	if err != nil {
		return Lower{}, err
	}
	return Protect(path)
}

// Protect puts a hash tree behind the filesystem in a file, which grows, with the
// library and the parameters of containerd's differ (internal/dmverity): a salt
// of 32 zeros, and the metadata file beside the layer.
func Protect(path string) (Lower, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Lower{}, err
	}
	params := verity.DefaultParams()
	params.DataBlockSize, params.HashBlockSize = verityBlock, verityBlock
	params.DataBlocks = (uint64(info.Size()) + verityBlock - 1) / verityBlock
	params.Salt, params.SaltSize = make([]byte, 32), 32
	params.UUID = uuid.NewSHA1(uuid.NameSpaceOID, []byte(path))
	offset := params.DataBlocks * verityBlock
	params.HashAreaOffset = offset
	tree, err := verity.GetHashTreeSize(&params)
	if err != nil {
		return Lower{}, err
	}
	size := offset + utils.AlignUp(uint64(verity.SuperblockSize), verityBlock) + tree
	if err := os.Truncate(path, int64(size)); err != nil {
		return Lower{}, err
	}
	root, err := verity.Create(&params, path, path)
	if err != nil {
		return Lower{}, fmt.Errorf("hash tree of %s: %w", path, err)
	}
	lower := Lower{Path: path, Verity: path + ".dmverity"}
	return lower, lower.SetRoot(fmt.Sprintf("%x", root), offset)
}

// SetRoot writes the metadata file of a layer with dm-verity: the root hash in
// hexadecimal digits, and where the superblock of the tree is, in bytes.
func (l Lower) SetRoot(root string, offset uint64) error {
	text, err := json.MarshalIndent(map[string]any{"roothash": root, "hashoffset": offset}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.Verity, text, 0o644)
}
