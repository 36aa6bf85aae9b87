package task

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxAny bounds what arrives packed, in bytes.
const maxAny = 4 << 20

// fromAny unpacks a type of the OCI runtime spec, which containerd packs as JSON
// under types.containerd.io/opencontainers/runtime-spec/<major>/<name>
// (core/runtime/typeurl.go).
func fromAny(packed *anypb.Any, name string, into any) error {
	url := packed.GetTypeUrl()
	if !strings.Contains(url, "opencontainers/runtime-spec/") || !strings.HasSuffix(url, "/"+name) {
		return fmt.Errorf("a message of type %q where the %s of an OCI spec belongs: %w", url, name, errdefs.ErrInvalidArgument)
	}
	if n := len(packed.GetValue()); n > maxAny {
		return fmt.Errorf("%s: %d bytes are more than %d: %w", name, n, maxAny, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(packed.GetValue(), into); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}
