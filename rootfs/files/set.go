package files

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
)

// Set is the open files of one plan. A path is opened once, however often it is
// asked for.
type Set struct {
	mu     sync.Mutex
	files  map[string]*File
	access map[string]Access
}

// NewSet returns a Set without files.
func NewSet() *Set {
	return &Set{files: make(map[string]*File), access: make(map[string]Access)}
}

// Open is the file at path: the one that is open already, or one that is opened
// now. The file stays the Set's. To ask for a path a second time with another
// access is an error, as one file would be both read and written to.
func (s *Set) Open(path string, access Access) (*File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[path]; f != nil {
		if s.access[path] != access {
			return nil, fmt.Errorf("%q is both a writable image and a layer: %w", path, errdefs.ErrInvalidArgument)
		}
		return f, nil
	}
	f, err := Open(path, access)
	if err != nil {
		return nil, err
	}
	s.files[path], s.access[path] = f, access
	return f, nil
}

// Adopt makes a file for reading, which was opened elsewhere, one of the Set.
// After an error it is closed.
func (s *Set) Adopt(f *File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[f.Path] != nil {
		return errors.Join(fmt.Errorf("%q is handed over, but made by the runtime itself: %w", f.Path, errdefs.ErrInvalidArgument), f.Close())
	}
	s.files[f.Path] = f
	return nil
}

// Handle is that of the file with the given path, nil if there is none.
func (s *Set) Handle(path string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[path]; f != nil {
		return f.Handle()
	}
	return nil
}

// Close closes all files and forgets them. It may be called again.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	clear(s.files)
	clear(s.access)
	return errors.Join(errs...)
}
