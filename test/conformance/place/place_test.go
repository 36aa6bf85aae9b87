package place

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/test/need"
)

// whatVar says what this test binary does as a program in a place.
const whatVar = "EROFSVM_TEST_IN_PLACE"

func TestMain(m *testing.M) {
	Main()
	if what := os.Getenv(whatVar); what != "" {
		if err := inPlace(what); err != nil {
			fmt.Println(err)
			os.Exit(7)
		}
		return
	}
	os.Exit(m.Run())
}

func inPlace(what string) error {
	switch what {
	case "look":
		return look()
	case "fail":
		return errors.New("it failed")
	case "leave":
		// A process of its own session, whose parent ends at once.
		cmd := exec.Command("sh", "-c", "setsid sleep 98765 </dev/null >/dev/null 2>&1 &")
		return cmd.Run()
	}
	return fmt.Errorf("unknown: %q", what)
}

// look checks what is there.
func look() error {
	text, err := os.ReadFile("/etc/erofsvm/test.conf")
	if err != nil || string(text) != "mine\n" {
		return fmt.Errorf("/etc: %q, %w", text, err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		return fmt.Errorf("the host's files are missing: %w", err)
	}
	for _, dir := range []string{"/run", "/tmp"} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			return fmt.Errorf("%s has %v, %w", dir, entries, err)
		}
	}
	if err := os.WriteFile("/run/made", nil, 0o600); err != nil {
		return err
	}
	if parent := os.Getppid(); parent != 1 {
		return fmt.Errorf("the parent is %d", parent)
	}
	addresses, err := net.LookupHost("registry.invalid")
	if err != nil || len(addresses) != 1 || addresses[0] != "127.0.0.1" {
		return fmt.Errorf("name: %v, %w", addresses, err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:443")
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.DialTimeout("tcp", "registry.invalid:443", 5*time.Second)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return conn.Close()
}

// run runs this binary in a place, and returns what it printed.
func run(t *testing.T, p Place, what string) (string, error) {
	t.Helper()
	need.Root(t, "to make namespaces")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd, err := p.Command(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, whatVar+"="+what)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestThePlaceIsWhatWasAskedForAndTheHostStaysAsItWas(t *testing.T) {
	p := Place{
		Dir: filepath.Join(t.TempDir(), "place"), Dirs: []string{"/run", "/tmp"},
		Etc: map[string]string{"erofsvm/test.conf": "mine\n"}, Hosts: []string{"registry.invalid"},
	}
	if out, err := run(t, p, "look"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat("/etc/erofsvm/test.conf"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host has the file: %v", err)
	}
	if _, err := os.Stat("/run/made"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host has what was made in the place: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.Dir, "run", "made")); err != nil {
		t.Errorf("what was made in the place is not kept: %v", err)
	}
	if out, err := run(t, p, "look"); err != nil {
		t.Errorf("once more, which is to find it empty: %v: %s", err, out)
	}
}

func TestTheStatusOfTheProgramIsThatOfThePlace(t *testing.T) {
	out, err := run(t, Place{Dir: filepath.Join(t.TempDir(), "place")}, "fail")
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 7 || !strings.Contains(out, "it failed") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestWhatIsLeftEndsWithThePlace: also what has left its parent and its session.
func TestWhatIsLeftEndsWithThePlace(t *testing.T) {
	before := sleepers(t)
	if out, err := run(t, Place{Dir: filepath.Join(t.TempDir(), "place")}, "leave"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if after := sleepers(t); after > before {
		t.Errorf("%d processes more than before", after-before)
	}
}

func sleepers(t *testing.T) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if cmdline, err := os.ReadFile(file); err == nil && string(cmdline) == "sleep\x0098765\x00" {
			n++
		}
	}
	return n
}

func TestPathsMustBeAbsolute(t *testing.T) {
	for _, p := range []Place{{}, {Dir: "place"}, {Dir: "/a/../b"}, {Dir: t.TempDir(), Dirs: []string{"run"}}} {
		if _, err := p.Command(t.Context()); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}
