package truth

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofsvm/erofsvm/test/truth/layers"
)

// protectedImage is two protected layers of the test's own, the upper one with
// a file whose content is given, and the metadata of both.
func (m *machine) protectedImage(t *testing.T, name string, content []byte) []layers.Lower {
	t.Helper()
	maker := m.chain.maker
	maker.Dir = t.TempDir()
	tar, err := layers.Files(map[string][]byte{name: content})
	if err != nil {
		t.Fatal(err)
	}
	top, err := maker.Protected(within(t, step), "top.erofs", tar)
	if err != nil {
		t.Fatal(err)
	}
	return []layers.Lower{m.chain.protected[0], top}
}

// noise does not repeat, so that a place in a file is found by its bytes.
func noise(n int) []byte {
	data := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{7})
	rng.Read(data)
	return data
}

// flip changes one bit of the file where it has the bytes.
func flip(t *testing.T, path string, where []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, where)
	if at < 0 {
		t.Fatalf("%s does not have the bytes", path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{data[at] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBitIsAnErrorOfItsReader: the block is refused to who reads it, the
// log says which layer it is of, and all else goes on.
func TestFlippedBitIsAnErrorOfItsReader(t *testing.T) {
	m := startMachine(t, nil)
	content := noise(1 << 20)
	lowers := m.protectedImage(t, "data", content)
	flip(t, lowers[1].Path, content[512<<10:][:64])

	result, err := m.Run(within(t, step), layers.Active(layers.Upper{Image: m.image(t)}, lowers...),
		"/"+inGuest, "read", "/data", "/etc/kept")
	if err != nil {
		t.Fatal(err)
	}
	if result.Code != 1 || !strings.Contains(result.Stdout, "/data EIO\n") || !strings.Contains(result.Stdout, "/etc/kept 15 ") {
		t.Errorf("exit code %d:\n%s", result.Code, result.Stdout)
	}
	line, err := m.WaitLog(within(t, step), "does not match its hash tree", "layer="+lowers[1].Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(line)
	m.run(t, layers.Active(layers.Upper{Image: m.image(t)}, m.chain.protected[0]), "read", "/etc/kept")
}

// TestWrongRootHashIsARefusedStart: nothing of the layer is shown to anyone.
func TestWrongRootHashIsARefusedStart(t *testing.T) {
	m := startMachine(t, nil)
	lowers := m.protectedImage(t, "data", noise(9999))
	metadata, err := os.ReadFile(lowers[1].Verity)
	if err != nil {
		t.Fatal(err)
	}
	var offset uint64
	if _, err := fmt.Sscanf(string(metadata[bytes.Index(metadata, []byte("hashoffset")):]), `hashoffset": %d`, &offset); err != nil {
		t.Fatal(err)
	}
	wrong := strings.Repeat("5a", 32)
	if err := lowers[1].SetRoot(wrong, offset); err != nil {
		t.Fatal(err)
	}
	before := m.devices(t)
	_, err = m.Create(within(t, step), layers.Active(layers.Upper{Image: m.image(t)}, lowers...), "/"+inGuest, "wait")
	if err == nil {
		t.Fatal("a layer with a wrong root hash is mounted")
	}
	for _, want := range []string{"dm-verity", wrong} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if after := m.devices(t); strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("devices before: %q, after: %q", before, after)
	}
	if open := m.openFiles(t, filepath.Dir(lowers[1].Path)); len(open) > 0 {
		t.Errorf("QEMU has open: %q", open)
	}
}
