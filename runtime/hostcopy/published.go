package hostcopy

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// dataLink is the link by which a kubelet publishes the content of a configmap, a
// secret, a projected volume or the downward API: it leads to a directory beside it
// and is replaced by a rename when there is new content. The names that containers
// use are links through it (pkg/volume/util/atomic_writer.go of Kubernetes).
const dataLink = "..data"

// Published says that a kubelet keeps the directory: it has new content as soon as
// the link "..data" leads elsewhere. The tree has what that link leads to, the link,
// and what else is in the directory, but no content that is not published, or not
// any more.
func (t *Tree) Published() bool { return t.published != "" }

// PublishOrder says in which of three steps an entry of such a tree is to be made,
// so that at any time whoever looks sees the old content whole or the new one: the
// content, the link, the names that lead through it.
func (t *Tree) PublishOrder(e Entry) int {
	switch {
	case e.Name == dataLink:
		return 1
	case e.Name == "" || e.Name == t.published || strings.HasPrefix(e.Name, t.published+"/"):
		return 0
	}
	return 2
}

// readPublished looks where the link leads, if the root has one.
func (t *Tree) readPublished() error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(t.root, dataLink, buf)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // not there, or no link
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "readlink", Path: path.Join(t.source, dataLink), Err: err}
	}
	// Others that use the name are copied like any directory.
	if to := string(buf[:n]); strings.HasPrefix(to, "..") && to != ".." && !strings.Contains(to, "/") {
		t.published = to
	}
	return nil
}

// isLeftOver says whether a name in the root of a published tree is content that
// nobody sees: the kubelet's own names begin with two dots, and those of keys never
// do.
func (t *Tree) isLeftOver(name string) bool {
	return t.published != "" && strings.HasPrefix(name, "..") && name != dataLink && name != t.published
}

// checkPublished makes sure that the content was the published one to the end.
func (t *Tree) checkPublished() error {
	if t.published == "" {
		return nil
	}
	link, content := false, false
	for _, e := range t.Entries {
		link = link || e.Name == dataLink && e.Target == t.published
		content = content || e.Name == t.published && e.Type() == unix.S_IFDIR
	}
	if !link || !content {
		return fmt.Errorf("%s was given other content while it was looked at: %w", t.source, errdefs.ErrUnavailable)
	}
	return nil
}
