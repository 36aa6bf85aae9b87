package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// markerName is a file that every sandbox directory has, so that a damaged
// record cannot make Cleanup remove a directory of somebody else.
const markerName = "erofsvm-sandbox"

// sandboxDir is the directory of the sandbox with this bundle. The name is a
// hash because the path of a socket in it must stay below 108 bytes whatever
// the ids are.
func sandboxDir(stateDir, bundle string) string {
	sum := sha256.Sum256([]byte(bundle))
	return filepath.Join(stateDir, hex.EncodeToString(sum[:8]))
}

// makeSandboxDir makes the directory anew: what an earlier sandbox of the same
// bundle left there is of no use to anyone.
func makeSandboxDir(dir string) error {
	if err := removeSandboxDir(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("directory of the sandbox: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, markerName), nil, 0o600)
}

func removeSandboxDir(dir string) error {
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, markerName)); err != nil {
		if os.Remove(dir) == nil {
			return nil // it was empty: its maker was interrupted
		}
		return fmt.Errorf("%s is no directory of a sandbox and is left alone: %w", dir, err)
	}
	// The marker goes last: a removal that is interrupted can be repeated.
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == markerName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("directory of the sandbox: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("directory of the sandbox: %w", err)
	}
	return nil
}
