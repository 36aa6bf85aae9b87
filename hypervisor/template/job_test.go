package template

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestLaunchTellsOfTheProcessBeforeItWorks with a program that looks whether it was
// told of.
func TestLaunchTellsOfTheProcessBeforeItWorks(t *testing.T) {
	dir := t.TempDir()
	program, told, job := filepath.Join(dir, "program"), filepath.Join(dir, "told"), filepath.Join(dir, "job")
	text := "#!/bin/sh\ncat >" + job + " && test \"$1\" = build-template && test \"$$\" = \"$(cat " + told + ")\"\n"
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	tell := func(pid int) error { return os.WriteFile(told, []byte(strconv.Itoa(pid)), 0o600) }
	if err := (Job{}).Launch(t.Context(), program, tell); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(job); err != nil || info.Size() == 0 {
		t.Errorf("what it read: %v, %v", info, err)
	}

	if err := os.Remove(job); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	if err := (Job{}).Launch(t.Context(), program, func(int) error { return no }); !errors.Is(err, no) {
		t.Errorf("launched although it could not be told of: %v", err)
	}
	if info, err := os.Stat(job); err == nil && info.Size() > 0 {
		t.Errorf("it has its job: %v", info)
	}
}
