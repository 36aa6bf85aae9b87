package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// What a probe found is true for one boot of the host and one set of files. It is
// kept in files of Spec.CacheDir, one per probe:
//
//	{"key": "<boot id> <identity of each file>", "answer": …}
//
// The directory is private to root, and a file in it is still only a hint: what
// cannot be read, or has another key, is found out again and replaced.

// maxCacheFile bounds what is read of a file that ought to have a few hundred
// bytes.
const maxCacheFile = 64 << 10

type cacheFile struct {
	Key    string          `json:"key"`
	Answer json.RawMessage `json:"answer"`
}

// cached fills answer with what was stored under key, and says whether there was
// anything.
func cached(dir, name, key string, answer any) bool {
	if dir == "" {
		return false
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCacheFile))
	var stored cacheFile
	return err == nil && json.Unmarshal(b, &stored) == nil && stored.Key == key &&
		json.Unmarshal(stored.Answer, answer) == nil
}

// store keeps answer under key. Two shims may do so at once; each file is whole.
func store(dir, name, key string, answer any) (err error) {
	if dir == "" {
		return nil
	}
	raw, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	b, err := json.Marshal(cacheFile{Key: key, Answer: raw})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(tmp, bytes.NewReader(b))
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// hostKey names this boot of the host and the files that a probe runs.
func hostKey(files ...string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(boot))
	for _, path := range files {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		key += fmt.Sprintf(" %s:%d:%d:%d:%d.%09d", path, st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
	}
	return key, nil
}

// removeFile removes a file that need not exist.
func removeFile(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
