package stdio

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// program writes a shell script that stands for a logging program.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "logger")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\ncd \"$(dirname \"$0\")\"\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t *testing.T, path, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestALoggingProgramTakesBothOutputsByItsContract(t *testing.T) {
	path := program(t, `echo "$CONTAINER_NAMESPACE/$CONTAINER_ID $* $SECRET" > about
exec 5>&-
cat <&3 > out &
cat <&4 > err
wait`)
	t.Setenv("SECRET", "of the shim")
	uri := "binary://" + path + "?key=value&another=a%20b"
	s := open(t, Paths{Stdout: uri, Stderr: uri})
	g := newFakeGuest()
	s.Start(g)
	g.stdout.data <- []byte("to out")
	g.stderr.data <- []byte("to err")
	close(g.stdout.data)
	close(g.stderr.data)
	if err := s.Drain(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.Close() // waits for the program
	if about := content(t, path, "about"); about != "ns/c1 another a b key value \n" {
		t.Errorf("it was told %q", about)
	}
	if out, errs := content(t, path, "out"), content(t, path, "err"); out != "to out" || errs != "to err" {
		t.Errorf("it has %q and %q", out, errs)
	}
}

func TestALoggingProgramIsAwaited(t *testing.T) {
	path := program(t, `sleep 600`)
	o := testOptions(t)
	o.Deadline = 50 * time.Millisecond
	_, err := Open(t.Context(), Paths{Stdout: "binary://" + path, Terminal: true}, o)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "50ms") {
		t.Errorf("%v", err)
	}
}

func TestTheSecondContractWantsAByte(t *testing.T) {
	path := program(t, `exec 5>&-; cat <&3 > out`)
	if _, err := Open(t.Context(), Paths{Stdout: "binary-v2://" + path, Terminal: true}, testOptions(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("without: %v", err)
	}
	path = program(t, `printf x >&5; exec 5>&-; cat <&3 > out`)
	s := open(t, Paths{Stdout: "binary-v2://" + path, Terminal: true})
	s.Close()
}

func TestALoggingProgramThatDiesDoesNotHoldTheProcessUp(t *testing.T) {
	path := program(t, `exec 5>&-; exit 1`)
	s := open(t, Paths{Stdout: "binary://" + path, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	go func() {
		for range 100 {
			g.stdout.data <- make([]byte, 64<<10)
		}
		close(g.stdout.data)
	}()
	if err := s.Drain(20 * time.Second); err != nil {
		t.Error(err)
	}
}

func TestALoggingProgramThatDoesNotEndIsEnded(t *testing.T) {
	path := program(t, `trap "exit 0" TERM; exec 5>&-; while :; do sleep 0.1; done`)
	s := open(t, Paths{Stdout: "binary://" + path, Terminal: true})
	s.Start(newFakeGuest())
	begun := time.Now()
	s.Close()
	if took := time.Since(begun); took < atEnd || took > atEnd+afterTerm {
		t.Errorf("it took %s", took)
	}
}
