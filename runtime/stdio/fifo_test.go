package stdio

import (
	"io"
	"os"
	"testing"
	"time"
)

// ended starts streams whose process has said text and ended.
func ended(t *testing.T, path, text string) *IO {
	t.Helper()
	s := open(t, Paths{Stdout: path, Terminal: true})
	g := newFakeGuest()
	s.Start(g)
	g.stdout.data <- []byte(text)
	close(g.stdout.data)
	return s
}

// TestOutputIsHandedOverWhenItsReaderHasIt, and not when it lies in the fifo.
func TestOutputIsHandedOverWhenItsReaderHasIt(t *testing.T) {
	path := mkfifo(t, "out")
	opened := make(chan *os.File, 1)
	go func() {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	s := ended(t, path, "last words")
	reader := receive(t, opened)
	defer reader.Close()
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(20 * time.Second) }()
	select {
	case err := <-drained:
		t.Errorf("handed over before anybody has read: %v", err)
	case <-time.After(taking / 4):
	}
	data, err := io.ReadAll(reader) // the fifo's end comes once it is empty
	if err != nil || string(data) != "last words" {
		t.Errorf("%q, %v", data, err)
	}
	if err := receive(t, drained); err != nil {
		t.Error(err)
	}
}

// TestAReaderThatDoesNotReadHoldsNothingUp: neither one that has gone, nor one
// that only has the fifo open.
func TestAReaderThatDoesNotReadHoldsNothingUp(t *testing.T) {
	for name, stays := range map[string]bool{"gone": false, "idle": true} {
		t.Run(name, func(t *testing.T) {
			path := mkfifo(t, "out")
			opened := make(chan *os.File, 1)
			go func() {
				f, err := os.Open(path)
				if err != nil {
					t.Error(err)
				}
				opened <- f
			}()
			s := open(t, Paths{Stdout: path, Terminal: true})
			reader := receive(t, opened)
			if !stays {
				reader.Close()
			} else {
				defer reader.Close()
			}
			g := newFakeGuest()
			s.Start(g)
			begun := time.Now()
			g.stdout.data <- []byte("last words")
			close(g.stdout.data)
			if err := s.Drain(20 * time.Second); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); !stays && took >= taking {
				t.Errorf("nobody was waited for for %s", took)
			} else if stays && took < taking {
				t.Errorf("a reader was waited for for %s", took)
			}
		})
	}
}
