package hook

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const long = time.Minute

func shell(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"name", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}}
}

func TestAHookGetsTheStateAndItsOwnEnvironmentAndNoOther(t *testing.T) {
	bundle := t.TempDir()
	t.Setenv("SECRET", "of the shim")
	state := specs.State{Version: "1.2.0", ID: "c1", Status: specs.StateCreated, Pid: 42, Bundle: bundle}
	h := shell(`cat > state; echo "$0 $A $SECRET" > env`)
	if err := Run(t.Context(), h, state, long); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(bundle, "state"))
	if err != nil {
		t.Fatal(err)
	}
	var got specs.State
	if err := json.Unmarshal(data, &got); err != nil || got.ID != "c1" || got.Pid != 42 || got.Status != specs.StateCreated {
		t.Errorf("%s, %v", data, err)
	}
	if env, _ := os.ReadFile(filepath.Join(bundle, "env")); string(env) != "name b \n" {
		t.Errorf("environment %q", env)
	}
}

func TestAHookThatFailsSaysWhatItSaid(t *testing.T) {
	err := Run(t.Context(), shell(`echo no network >&2; exit 3`), specs.State{}, long)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no network") {
		t.Errorf("%v", err)
	}
}

func TestWhatAHookSaysIsCut(t *testing.T) {
	err := Run(t.Context(), shell(`i=0; while [ $i -lt 2000 ]; do echo 0123456789; i=$((i+1)); done; echo last; exit 1`), specs.State{}, long)
	if err == nil || len(err.Error()) > 2*maxOutput || !strings.Contains(err.Error(), "last") {
		t.Errorf("%d bytes", len(err.Error()))
	}
}

func TestAHookEndsWithItsTimeAndAllThatItStarted(t *testing.T) {
	begun := time.Now()
	one := 1
	h := shell(`sleep 600 & sleep 600`)
	h.Timeout = &one
	err := Run(t.Context(), h, specs.State{}, long)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1s") || time.Since(begun) > long/2 {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
	if err := Run(t.Context(), shell(`sleep 600`), specs.State{}, 10*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a timeout of its own: %v", err)
	}
}

func TestAHookThatIsNotThere(t *testing.T) {
	if err := Run(t.Context(), specs.Hook{Path: "/nowhere/hook"}, specs.State{}, long); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
