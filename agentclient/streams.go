package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// ReadStdout reads what the process wrote to its standard output, or to its
// terminal. It waits, as long as ctx lets it, until there is at least one byte;
// after the last one it returns io.EOF. One goroutine at a time should read a
// stream: a call that is abandoned takes the bytes it would have returned.
func (c *Client) ReadStdout(ctx context.Context, p Process, buf []byte) (int, error) {
	return readStream(ctx, "ReadStdout", c.agent.ReadStdout, p, buf)
}

// ReadStderr is ReadStdout for the standard error; a process with a terminal
// has none and gives io.EOF.
func (c *Client) ReadStderr(ctx context.Context, p Process, buf []byte) (int, error) {
	return readStream(ctx, "ReadStderr", c.agent.ReadStderr, p, buf)
}

type readFunc func(context.Context, *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error)

func readStream(ctx context.Context, method string, do readFunc, p Process, buf []byte) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	want := min(len(buf), MaxChunk)
	resp, err := call(ctx, method, unbounded, do,
		&pb.ReadStreamRequest{ContainerId: p.Container, ExecId: p.Exec, Len: uint32(want)})
	if err != nil {
		// The end of a stream is a status of its own and not a text: the agent
		// answers OutOfRange once everything is read.
		if errors.Is(err, errdefs.ErrOutOfRange) {
			return 0, io.EOF
		}
		return 0, err
	}
	data := resp.GetData()
	switch {
	case len(data) > want:
		return 0, fmt.Errorf("agent %s: %w: %d bytes where %d were asked for", method, ErrBadReply, len(data), want)
	case len(data) == 0:
		return 0, fmt.Errorf("agent %s: %w: a reply without data", method, ErrBadReply)
	}
	return copy(buf, data), nil
}

// WriteStdin writes all of data to the standard input of the process, in
// messages of at most MaxChunk, and waits as long as ctx lets it while the
// process does not read. It returns how many bytes the process was given.
func (c *Client) WriteStdin(ctx context.Context, p Process, data []byte) (int, error) {
	written := 0
	for written < len(data) {
		chunk := data[written:min(written+MaxChunk, len(data))]
		resp, err := call(ctx, "WriteStdin", unbounded, c.agent.WriteStdin,
			&pb.WriteStreamRequest{ContainerId: p.Container, ExecId: p.Exec, Data: chunk})
		if err != nil {
			return written, err
		}
		n := int64(resp.GetLen())
		if n == 0 || n > int64(len(chunk)) {
			return written, fmt.Errorf("agent WriteStdin: %w: %d bytes taken of %d", ErrBadReply, n, len(chunk))
		}
		written += int(n)
	}
	return written, nil
}

// CloseStdin closes the standard input of the process, which then reads end of
// file. Closing it again is no error.
func (c *Client) CloseStdin(ctx context.Context, p Process) error {
	_, err := call(ctx, "CloseStdin", c.deadlines.Signal, c.agent.CloseStdin,
		&pb.CloseStdinRequest{ContainerId: p.Container, ExecId: p.Exec})
	return err
}

// TtyWinResize sets the size of the process's terminal, in characters.
func (c *Client) TtyWinResize(ctx context.Context, p Process, rows, columns uint16) error {
	_, err := call(ctx, "TtyWinResize", c.deadlines.Signal, c.agent.TtyWinResize,
		&pb.TtyWinResizeRequest{ContainerId: p.Container, ExecId: p.Exec, Row: uint32(rows), Column: uint32(columns)})
	return err
}
