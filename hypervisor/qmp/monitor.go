// Package qmp speaks the QEMU Machine Protocol over one connection to one QEMU.
//
// A Monitor owns its connection and one goroutine, the reader, which lives from
// Handshake until the connection ends. All methods may be called from any
// goroutine and at the same time: commands are told apart by their id, so a slow
// one holds up no other caller. The reader never waits for anybody.
//
// It is a qmp.Monitor of github.com/digitalocean/go-qemu and uses that module's
// wire types. Its SocketMonitor is not used: it hands out buffers that the next
// line overwrites, ends at a line of 64 KiB, and knows neither ids nor
// deadlines.
//
// The package knows no command but qmp_capabilities and starts no QEMU.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

const (
	// DefaultTimeout bounds a call whose context has no deadline.
	DefaultTimeout = 30 * time.Second

	// maxLine bounds what is read before QEMU must have ended a line. The
	// longest answer of QEMU 10, to query-qmp-schema, is a few hundred KiB.
	maxLine = 64 << 20
)

var (
	// ErrClosed is wrapped by every call that is pending when the connection
	// ends, and by every call after that.
	ErrClosed = errors.New("QMP connection is closed")
	// ErrProtocol is wrapped when QEMU sends what is not QMP. The connection
	// is closed then: an answer may have been in what was not understood.
	ErrProtocol = errors.New("not QMP")
	// ErrNoFiles is wrapped when a file cannot be sent over the connection.
	ErrNoFiles = errors.New("the QMP connection takes no files")
)

// Monitor is one QMP connection.
type Monitor struct {
	conn net.Conn
	// turn holds the right to write to conn. A channel, so that waiting for it
	// ends with the caller's context.
	turn chan struct{}
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex // guards what follows; never held over I/O
	started bool
	version goqemu.Version
	lastID  uint64
	pending map[string]chan reply
	subs    map[*Subscription]struct{}
	err     error // why the connection ended; set before done is closed
}

var _ goqemu.Monitor = (*Monitor)(nil)

// reply is one line that answers a command.
type reply struct {
	ID     string          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class Class  `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	line []byte
}

// New makes a Monitor that owns conn. Handshake comes next.
func New(conn net.Conn) *Monitor {
	return &Monitor{
		conn:    conn,
		turn:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: map[string]chan reply{},
		subs:    map[*Subscription]struct{}{},
	}
}

// Handshake waits for QEMU's greeting and leaves the negotiation mode
// (docs/interop/qmp-spec.rst, "Capabilities Negotiation"). It is called once,
// before every other call. After an error the Monitor is closed.
func (m *Monitor) Handshake(ctx context.Context) error {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	lines := bufio.NewReaderSize(m.conn, 8<<10) // a longer line is put together
	greeting, err := m.greeting(ctx, lines)

	m.mu.Lock()
	if m.started {
		m.mu.Unlock()
		return errors.New("QMP handshake: already done")
	}
	m.started = true
	m.version = greeting
	m.mu.Unlock()
	if err != nil {
		m.end(err)
		return fmt.Errorf("QMP handshake: %w", err)
	}

	go m.read(lines)
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = m.Disconnect()
		return fmt.Errorf("QMP handshake: %w", err)
	}
	return nil
}

func (m *Monitor) greeting(ctx context.Context, lines *bufio.Reader) (goqemu.Version, error) {
	var line []byte
	err := interruptible(ctx, m.conn.SetReadDeadline, func() (err error) {
		line, err = readLine(lines)
		return err
	})
	if err != nil {
		return goqemu.Version{}, fmt.Errorf("wait for the greeting: %w", err)
	}
	var greeting struct {
		QMP *struct {
			Version goqemu.Version `json:"version"`
		} `json:"QMP"`
	}
	if err := json.Unmarshal(line, &greeting); err != nil || greeting.QMP == nil {
		return goqemu.Version{}, fmt.Errorf("%w: greeting %.200q", ErrProtocol, line)
	}
	return greeting.QMP.Version, nil
}

// Version is QEMU's, known after Handshake.
func (m *Monitor) Version() goqemu.Version {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version
}

// Execute runs a command and decodes what it returns into result, unless that is
// nil. args is marshalled to the JSON object of the command's arguments; nil
// means none. The call returns when ctx ends, at the latest after DefaultTimeout
// if ctx has no deadline; QEMU may run the command all the same. An error that
// QEMU answers is an *Error.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	return m.ExecuteWithFile(ctx, command, args, result, nil)
}

// ExecuteWithFile is Execute of a command that takes a descriptor from the
// socket, such as add-fd. QEMU receives a duplicate of file, which stays the
// caller's; nil sends none. Where the connection is no Unix socket, a file is
// refused with ErrNoFiles.
//
// Calls may overlap like any others: the kernel ends what one recvmsg returns at
// the bytes that a descriptor came with (unix(7)), and QEMU reads the next
// command only when it is done with this one.
func (m *Monitor) ExecuteWithFile(ctx context.Context, command string, args, result any, file *os.File) error {
	r, err := m.call(ctx, command, map[string]any{}, args, file)
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, result); err != nil {
		return fmt.Errorf("QMP %s: decode %.200q: %w", command, r.Return, err)
	}
	return nil
}

// call sends message, completed by the command, its arguments and an id, and
// waits for the answer.
func (m *Monitor) call(ctx context.Context, command string, message map[string]any, args any, file *os.File) (reply, error) {
	ctx, cancel := withDefaultTimeout(ctx)
	defer cancel()
	failed := func(err error) (reply, error) { return reply{}, fmt.Errorf("QMP %s: %w", command, err) }

	id, answer, err := m.expect()
	if err != nil {
		return failed(err)
	}
	defer m.forget(id)

	message["execute"], message["id"] = command, id
	if args != nil {
		message["arguments"] = args
	}
	line, err := json.Marshal(message)
	if err != nil {
		return failed(err)
	}
	if err := m.write(ctx, append(line, '\n'), file); err != nil {
		return failed(err)
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return reply{}, &Error{Command: command, Class: r.Error.Class, Desc: r.Error.Desc}
		}
		return r, nil
	case <-m.done:
		return failed(m.Err())
	case <-ctx.Done():
		return failed(fmt.Errorf("wait for the answer: %w", context.Cause(ctx)))
	}
}

// expect registers a new id. The channel takes the one answer without anybody
// waiting for it.
func (m *Monitor) expect() (string, <-chan reply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.err != nil:
		return "", nil, m.err
	case !m.started:
		return "", nil, errors.New("called before the handshake")
	}
	m.lastID++
	id := strconv.FormatUint(m.lastID, 10)
	answer := make(chan reply, 1)
	m.pending[id] = answer
	return id, answer, nil
}

func (m *Monitor) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, id)
}

// write sends one line whole, or ends the connection: half a command would be
// read as the beginning of the next one.
func (m *Monitor) write(ctx context.Context, line []byte, file *os.File) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-m.done:
		return m.Err()
	case <-ctx.Done():
		return fmt.Errorf("wait to send: %w", context.Cause(ctx))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait to send: %w", context.Cause(ctx))
	}
	var n int
	err := interruptible(ctx, m.conn.SetWriteDeadline, func() (err error) {
		n, err = send(m.conn, line, file)
		return err
	})
	if err == nil {
		return nil
	}
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, ErrNoFiles) {
		_ = m.conn.Close() // the reader notices and fails every pending call
	}
	return fmt.Errorf("send: %w", err)
}

// Disconnect closes the connection and waits until the reader has ended. Every
// pending call fails with ErrClosed. It may be called more than once.
func (m *Monitor) Disconnect() error {
	m.mu.Lock()
	started := m.started
	m.started = true
	m.mu.Unlock()
	err := m.conn.Close()
	if !started {
		m.end(net.ErrClosed)
	}
	<-m.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Done is closed when the connection has ended.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Err says why the connection has ended; it wraps ErrClosed. It is nil before
// Done is closed.
func (m *Monitor) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Connect is Handshake with DefaultTimeout, for go-qemu.
func (m *Monitor) Connect() error { return m.Handshake(context.Background()) }

// Run executes a command given as JSON, within DefaultTimeout, for go-qemu. An id
// in command is replaced. The answer is the line as QEMU sent it.
func (m *Monitor) Run(command []byte) ([]byte, error) {
	var message map[string]any
	if err := json.Unmarshal(command, &message); err != nil {
		return nil, fmt.Errorf("QMP command %.200q: %w", command, err)
	}
	name, ok := message["execute"].(string)
	if !ok {
		return nil, fmt.Errorf("QMP command %.200q: execute is not a string", command)
	}
	r, err := m.call(context.Background(), name, message, nil, nil)
	if err != nil {
		return nil, err
	}
	return r.line, nil
}

// interruptible runs one call of I/O that ends with ctx at the latest. It leaves no
// deadline set.
func interruptible(ctx context.Context, setDeadline func(time.Time) error, call func() error) error {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = setDeadline(time.Unix(1, 0)) // the past
	})
	err := call()
	if !stop() {
		<-fired
		_ = setDeadline(time.Time{})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	return err
}

func withDefaultTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, DefaultTimeout)
}

// readLine returns the next line in memory of its own, without the line's end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, maxLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
