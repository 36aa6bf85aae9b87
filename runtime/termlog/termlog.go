// Package termlog brings the last words of a container back to the host: the file
// into which a container of Kubernetes writes why it ends (terminationMessagePath),
// of which a container in a virtual machine has a copy.
//
// A File is the host's file as it was opened when the container was created: what
// takes its name later is never written to. It belongs to one goroutine at a time.
// The package decides by names alone which mount is such a file, and knows nothing
// of guests.
package termlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Max is how much of a message comes back, in bytes: its end. The kubelet reads the
// last 4096 (MaxContainerTerminationMessageLength in pkg/kubelet/container).
const Max = 64 << 10

// Destination is where Kubernetes has the file if a pod says nothing else
// (TerminationMessagePathDefault in its API).
const Destination = "/dev/termination-log"

// kubelet is how the kubelet names the host's file: below the directory that a
// container has in that of its pod, by a random number (makeMounts in
// pkg/kubelet/kuberuntime/kuberuntime_container.go).
var kubelet = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`/pods/[^/]+/containers/[^/]+/[0-9a-f]{1,8}$`)
})

// Is says whether a bind mount is of such a file. What is mounted read-only has
// nothing to bring back.
func Is(destination, source string, readOnly bool) bool {
	return !readOnly && (path.Clean(destination) == Destination || kubelet().MatchString(path.Clean(source)))
}

// File is a file of the host that a message goes to.
type File struct{ f *os.File }

// Open opens the host's file. What is no regular file is errdefs.ErrInvalidArgument.
func Open(source string) (*File, error) {
	f, err := os.OpenFile(source, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file: %w", source, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f: f}, nil
}

// Write makes the message, at most Max bytes, the content of the file. One that is
// there already, or is the end of what is there, changes nothing.
func (f *File) Write(message []byte) error {
	if len(message) > Max {
		return fmt.Errorf("a message of %d bytes, at most %d: %w", len(message), Max, errdefs.ErrInvalidArgument)
	}
	had, err := f.tail()
	if err != nil || bytes.Equal(had, message) {
		return err
	}
	if err := f.f.Truncate(0); err != nil {
		return err
	}
	_, err = f.f.WriteAt(message, 0)
	return err
}

// tail is what of the file could be a message.
func (f *File) tail() ([]byte, error) {
	info, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-Max)
	buf := make([]byte, min(info.Size(), Max))
	n, err := f.f.ReadAt(buf, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buf[:n], nil
}

// Close lets go of the file. It may be called more than once.
func (f *File) Close() { _ = f.f.Close() }
