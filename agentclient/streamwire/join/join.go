// Package join hands over what two connections say to each other, one of which
// says it in frames: the Unix sockets of docs/files-wire.md, at either end.
//
// It owns the connections that it is given, until both have ended. Join may be
// called from any goroutine; it returns no earlier than the one that it starts.
package join

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/erofsvm/erofsvm/agentclient/streamwire"
)

// halfCloser is a connection of which one direction can end before the other.
type halfCloser interface{ CloseWrite() error }

// Join hands over what comes in frames on one connection and as it is on the
// other, in both directions, until both have ended; the end of a direction is
// handed over too. Both connections are closed when it returns. An error is that
// of the connection with frames, if it broke.
func Join(frames, plain net.Conn) error {
	defer plain.Close()
	defer frames.Close()
	var sending sync.WaitGroup
	sending.Go(func() {
		if sendFrom(plain, frames) != nil {
			_ = frames.Close() // the other direction is of no use to anybody
		}
	})
	err := receiveTo(frames, plain)
	if err != nil {
		_ = plain.Close()
	}
	sending.Wait()
	return err
}

func sendFrom(plain, frames net.Conn) error {
	frame := new(streamwire.Frame)
	for {
		n, err := plain.Read(frame.Room())
		if n > 0 {
			if err := frame.Send(frames, n); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return streamwire.SendEnd(frames)
		}
		if err != nil {
			return err
		}
	}
}

func receiveTo(frames, plain net.Conn) error {
	frame := new(streamwire.Frame)
	for {
		data, err := frame.Receive(frames)
		if errors.Is(err, io.EOF) {
			if half, ok := plain.(halfCloser); ok {
				_ = half.CloseWrite()
			}
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := plain.Write(data); err != nil {
			return nil // its reader is gone, which the other direction says too
		}
	}
}
