package hostcopy

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// link makes a link in dir.
func link(t *testing.T, dir, name, target string) {
	t.Helper()
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func TestOfAPublishedDirectoryOnlyTheContentIsSeen(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..2026_old", "key"), "old")
	write(t, filepath.Join(dir, "..2026_new", "key"), "new")
	write(t, filepath.Join(dir, "..2026_new", "sub", "more"), "new")
	link(t, dir, "..data", "..2026_new")
	link(t, dir, "..data_tmp", "..2026_old")
	link(t, dir, "key", "..data/key")
	link(t, dir, "-first", "..data/-first")
	link(t, dir, "sub", "..data/sub")
	tree := scan(t, dir, enough())
	want := []string{
		`"" 40000 `, `"-first" 120000 ..data/-first`, `"..2026_new" 40000 `, `"..2026_new/key" 100000 `, `"..2026_new/sub" 40000 `,
		`"..2026_new/sub/more" 100000 `, `"..data" 120000 ..2026_new`, `"key" 120000 ..data/key`, `"sub" 120000 ..data/sub`,
	}
	if got := list(tree); !tree.Published() || !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	var order []int
	for _, e := range tree.Entries {
		order = append(order, tree.PublishOrder(e))
	}
	if want := []int{0, 2, 0, 0, 0, 0, 1, 2, 2}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestADataLinkOfOthersPublishesNothing(t *testing.T) {
	for _, target := range []string{"..", "data", "../elsewhere", "..data/x", "/etc"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "..other"), "x")
		link(t, dir, "..data", target)
		tree := scan(t, dir, enough())
		if tree.Published() || len(tree.Entries) != 3 {
			t.Errorf("%s: %q, published: %v", target, list(tree), tree.Published())
		}
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..data", "x"), "x")
	if tree := scan(t, dir, enough()); tree.Published() || len(tree.Entries) != 3 {
		t.Errorf("a directory: %q", list(tree))
	}
}

func TestContentThatIsNotThereIsNotPublished(t *testing.T) {
	dir := t.TempDir()
	link(t, dir, "..data", "..gone")
	if tree, err := Scan(dir, enough()); err == nil {
		t.Errorf("%q", list(tree))
	}
}
