package agentlog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReaderGetsBacklogAndWhatComes(t *testing.T) {
	l := New()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := l.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	defer serving.Wait()
	defer cancel()

	log := Logger(l, new(bytes.Buffer), slog.LevelInfo)
	log.Info("before")
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		var record map[string]any
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil || record["msg"] != want {
			t.Fatalf("%s, want %s: %v", lines.Bytes(), want, err)
		}
	}
	next("before")
	log.Info("after")
	next("after")
}

func TestBacklogIsBounded(t *testing.T) {
	l := New()
	for i := range Backlog + 10 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	lines, lost, next, _ := l.after(0)
	if len(lines) != Backlog || lost != 10 || next != Backlog+10 || string(lines[0]) != "line 10\n" {
		t.Errorf("%d lines, %d lost, next %d, first %q", len(lines), lost, next, lines[0])
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	_ = l.Follow(ctx, &out)
	if first, _, _ := strings.Cut(out.String(), "\n"); !strings.Contains(first, `"lines":10`) || !json.Valid([]byte(first)) {
		t.Errorf("a slow reader is told %q", first)
	}
	if n, err := l.Write(bytes.Repeat([]byte("x"), 2*maxLine)); err != nil || n != 2*maxLine {
		t.Errorf("%d, %v", n, err)
	}
	if lines, _, _, _ := l.after(next); len(lines[0]) != maxLine+1 {
		t.Errorf("a line of %d bytes is kept", len(lines[0]))
	}
}

func TestErrorsGoToTheConsoleToo(t *testing.T) {
	l, console := New(), new(bytes.Buffer)
	log := Logger(l, console, slog.LevelInfo).With("k", "v").WithGroup("g")
	log.Debug("quiet")
	log.Info("said")
	log.Error("shouted", "n", 1)
	if text := console.String(); !strings.Contains(text, "shouted") || strings.Contains(text, "said") || !strings.Contains(text, "k=v") || !strings.Contains(text, "g.n=1") {
		t.Errorf("console: %s", text)
	}
	if lines, _, _, _ := l.after(0); len(lines) != 2 {
		t.Errorf("log: %q", lines)
	}
}
