package template

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"sync"

	"github.com/erofsvm/erofsvm/hypervisor/qemu"
)

// Key names a template by all that it depends on: 32 hexadecimal digits.
type Key string

var keyFormat = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{32}$`)
})

// KeyOf is a pure function. encoding/json writes the fields of a struct in their
// order and the keys of a map sorted, so that equal descriptions are equal text.
func KeyOf(d qemu.Description) (Key, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("key of a template: %w", err)
	}
	sum := sha256.Sum256(text)
	return Key(hex.EncodeToString(sum[:16])), nil
}

func (k Key) check() error {
	if !keyFormat().MatchString(string(k)) {
		return fmt.Errorf("%.80q is no key of a template: 32 hexadecimal digits", string(k))
	}
	return nil
}
