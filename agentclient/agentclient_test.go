package agentclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAgent answers with what a test puts into it; the real one is tried in a
// VM by the tests of cmd/erofsvm-agent.
type fakeAgent struct {
	pb.AgentServiceService // calls that no test expects panic
	start                  func(context.Context) error
	read                   func(context.Context, *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error)
	write                  func(*pb.WriteStreamRequest) (*pb.WriteStreamResponse, error)
	copied                 []*pb.CopyFileRequest
	stats                  *pb.StatsContainerResponse
}

func (f *fakeAgent) StatsContainer(context.Context, *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	return f.stats, nil
}

func (f *fakeAgent) StartContainer(ctx context.Context, _ *pb.StartContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.start(ctx)
}

func (f *fakeAgent) ReadStdout(ctx context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
	return f.read(ctx, r)
}

func (f *fakeAgent) WriteStdin(_ context.Context, r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
	return f.write(r)
}

func (f *fakeAgent) CopyFile(_ context.Context, r *pb.CopyFileRequest) (*emptypb.Empty, error) {
	f.copied = append(f.copied, r)
	return &emptypb.Empty{}, nil
}

// connect serves the agent on one end of a socket pair and returns a client on
// the other, and what cuts the connection from the agent's side.
func connect(t *testing.T, f *fakeAgent, d Deadlines) (*Client, func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host, guest := netConn(t, fds[0]), netConn(t, fds[1])
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	pb.RegisterAgentServiceService(server, f)
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	l := &oneConn{conn: guest, closed: make(chan struct{})}
	serving.Go(func() { _ = server.Serve(ctx, l) })
	cut := func() {
		cancel()
		_ = server.Close()
		serving.Wait()
	}
	c := New(host, d)
	t.Cleanup(func() {
		_ = c.Close()
		<-c.Done()
		cut()
	})
	return c, cut
}

func netConn(t *testing.T, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
	taken  bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

func TestErrorsKeepTheirClass(t *testing.T) {
	for code, class := range map[codes.Code]error{
		codes.NotFound: errdefs.ErrNotFound, codes.AlreadyExists: errdefs.ErrAlreadyExists,
		codes.FailedPrecondition: errdefs.ErrFailedPrecondition, codes.InvalidArgument: errdefs.ErrInvalidArgument,
		codes.Unimplemented: errdefs.ErrNotImplemented, codes.Internal: errdefs.ErrInternal, codes.Unknown: errdefs.ErrUnknown,
	} {
		t.Run(code.String(), func(t *testing.T) {
			c, _ := connect(t, &fakeAgent{start: func(context.Context) error { return status.Error(code, "why") }}, Deadlines{})
			err := c.StartContainer(t.Context(), "c")
			if !errors.Is(err, class) || errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "StartContainer: why") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestErrorTextOfTheGuestIsCut(t *testing.T) {
	c, _ := connect(t, &fakeAgent{start: func(context.Context) error {
		return status.Error(codes.Internal, strings.Repeat("x", 1<<20))
	}}, Deadlines{})
	if err := c.StartContainer(t.Context(), "c"); len(err.Error()) > maxErrorText+100 {
		t.Errorf("%d bytes", len(err.Error()))
	}
}

func TestCallEndsAtItsDeadline(t *testing.T) {
	c, _ := connect(t, &fakeAgent{start: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}, Deadlines{Start: 20 * time.Millisecond})
	err := c.StartContainer(t.Context(), "c")
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrConnection) || !strings.Contains(err.Error(), "20ms") {
		t.Errorf("%v", err)
	}
}

func TestLostConnectionIsNotAnAnswer(t *testing.T) {
	reached := make(chan struct{})
	c, cut := connect(t, &fakeAgent{start: func(ctx context.Context) error {
		close(reached)
		<-ctx.Done()
		return nil
	}}, Deadlines{})
	failed := make(chan error, 1)
	go func() { failed <- c.StartContainer(context.Background(), "c") }()
	<-reached
	cut()
	if err := <-failed; !errors.Is(err, ErrConnection) {
		t.Errorf("call under way: %v", err)
	}
	<-c.Done()
	if err := c.StartContainer(t.Context(), "c"); !errors.Is(err, ErrConnection) {
		t.Errorf("call afterwards: %v", err)
	}
}

func TestEndOfStreamIsEOF(t *testing.T) {
	left := []string{"one", "two"}
	c, _ := connect(t, &fakeAgent{read: func(_ context.Context, r *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
		if len(left) == 0 {
			return nil, status.Error(codes.OutOfRange, "whatever the text")
		}
		word := left[0]
		left = left[1:]
		return &pb.ReadStreamResponse{Data: []byte(word)}, nil
	}}, Deadlines{})
	var got []string
	buf := make([]byte, 10)
	for {
		n, err := c.ReadStdout(t.Context(), Process{Container: "c"}, buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf[:n]))
	}
	if fmt.Sprint(got) != "[one two]" {
		t.Errorf("%v", got)
	}
}

func TestReplyThatBreaksTheProtocolIsRefused(t *testing.T) {
	for name, data := range map[string][]byte{"more than asked for": make([]byte, 11), "nothing": nil} {
		t.Run(name, func(t *testing.T) {
			c, _ := connect(t, &fakeAgent{read: func(context.Context, *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
				return &pb.ReadStreamResponse{Data: data}, nil
			}}, Deadlines{})
			if _, err := c.ReadStdout(t.Context(), Process{}, make([]byte, 10)); !errors.Is(err, ErrBadReply) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("more taken than given", func(t *testing.T) {
		c, _ := connect(t, &fakeAgent{write: func(*pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
			return &pb.WriteStreamResponse{Len: 4}, nil
		}}, Deadlines{})
		if n, err := c.WriteStdin(t.Context(), Process{}, []byte("abc")); n != 0 || !errors.Is(err, ErrBadReply) {
			t.Errorf("%d, %v", n, err)
		}
	})
}

func TestWriteStdinWritesAll(t *testing.T) {
	var got bytes.Buffer
	c, _ := connect(t, &fakeAgent{write: func(r *pb.WriteStreamRequest) (*pb.WriteStreamResponse, error) {
		taken := r.GetData()[:(len(r.GetData())+1)/2] // a process that takes half at a time
		got.Write(taken)
		return &pb.WriteStreamResponse{Len: uint32(len(taken))}, nil
	}}, Deadlines{})
	data := bytes.Repeat([]byte("0123456789"), MaxChunk/4)
	n, err := c.WriteStdin(t.Context(), Process{}, data)
	if n != len(data) || err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("wrote %d of %d: %v", n, len(data), err)
	}
}

func TestCopyFileSendsPieces(t *testing.T) {
	for _, size := range []int64{0, 1, MaxChunk, 2*MaxChunk + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			f := &fakeAgent{}
			c, _ := connect(t, f, Deadlines{})
			if err := c.CopyFile(t.Context(), File{Path: "/x", Size: size}, bytes.NewReader(make([]byte, size))); err != nil {
				t.Fatal(err)
			}
			next := int64(0)
			for _, r := range f.copied {
				if r.GetOffset() != next || r.GetFileSize() != size || len(r.GetData()) > MaxChunk {
					t.Errorf("piece at %d of %d bytes, want it at %d", r.GetOffset(), len(r.GetData()), next)
				}
				next += int64(len(r.GetData()))
			}
			if next != size || len(f.copied) == 0 {
				t.Errorf("%d pieces with %d bytes", len(f.copied), next)
			}
		})
	}
	c, _ := connect(t, &fakeAgent{}, Deadlines{})
	if err := c.CopyFile(t.Context(), File{Path: "/x", Size: 5}, strings.NewReader("four")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is too short: %v", err)
	}
}

// TestStreamsAndCallsShareTheConnection has a read wait while other calls go
// through.
func TestStreamsAndCallsShareTheConnection(t *testing.T) {
	data := make(chan []byte)
	c, _ := connect(t, &fakeAgent{
		read: func(ctx context.Context, _ *pb.ReadStreamRequest) (*pb.ReadStreamResponse, error) {
			return &pb.ReadStreamResponse{Data: <-data}, nil
		},
		start: func(context.Context) error { return nil },
	}, Deadlines{})
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			if _, err := c.ReadStdout(context.Background(), Process{}, make([]byte, 10)); err != nil {
				t.Error(err)
			}
		})
	}
	for range 20 {
		if err := c.StartContainer(t.Context(), "c"); err != nil {
			t.Error(err)
		}
	}
	for range 8 {
		data <- []byte("x")
	}
	readers.Wait()
}

func TestDirectoriesAndLinksAreOneMessage(t *testing.T) {
	f := &fakeAgent{}
	c, _ := connect(t, f, Deadlines{})
	if err := c.CopyDir(t.Context(), File{Path: "/d", Mode: 0o750, UID: 1, GID: 2}); err != nil {
		t.Fatal(err)
	}
	if err := c.CopyLink(t.Context(), File{Path: "/l", Mode: unix.S_IFREG | 0o777}, "../to"); err != nil {
		t.Fatal(err)
	}
	if err := c.CopyLink(t.Context(), File{Path: "/l"}, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a link to nothing: %v", err)
	}
	if len(f.copied) != 2 {
		t.Fatalf("%d messages", len(f.copied))
	}
	d, l := f.copied[0], f.copied[1]
	if d.GetFileMode() != unix.S_IFDIR|0o750 || d.GetFileSize() != 0 || d.GetUid() != 1 || d.GetGid() != 2 {
		t.Errorf("directory: %v", d)
	}
	if l.GetFileMode() != unix.S_IFLNK|0o777 || string(l.GetData()) != "../to" || l.GetFileSize() != 5 {
		t.Errorf("link: %v", l)
	}
}

func TestStatisticsWithoutBoundAreRefused(t *testing.T) {
	many := map[string]uint64{}
	for i := range maxStatsKeys + 1 {
		many[fmt.Sprint(i)] = 1
	}
	for name, reply := range map[string]*pb.StatsContainerResponse{
		"keys":       {CgroupStats: &pb.CgroupStats{MemoryStats: &pb.MemoryStats{Stats: many}}},
		"interfaces": {NetworkStats: make([]*pb.NetworkStats, maxStatsList+1)},
		"devices":    {CgroupStats: &pb.CgroupStats{BlkioStats: &pb.BlkioStats{IoServicedRecursive: make([]*pb.BlkioStatsEntry, maxStatsList+1)}}},
	} {
		for i := range reply.NetworkStats {
			reply.NetworkStats[i] = &pb.NetworkStats{}
		}
		for i := range reply.GetCgroupStats().GetBlkioStats().GetIoServicedRecursive() {
			reply.CgroupStats.BlkioStats.IoServicedRecursive[i] = &pb.BlkioStatsEntry{}
		}
		c, _ := connect(t, &fakeAgent{stats: reply}, Deadlines{})
		if _, err := c.StatsContainer(t.Context(), "c"); !errors.Is(err, ErrBadReply) {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := &pb.StatsContainerResponse{CgroupStats: &pb.CgroupStats{PidsStats: &pb.PidsStats{Current: 3}}}
	c, _ := connect(t, &fakeAgent{stats: want}, Deadlines{})
	if got, err := c.StatsContainer(t.Context(), "c"); err != nil || got.GetCgroupStats().GetPidsStats().GetCurrent() != 3 {
		t.Errorf("%v, %v", got, err)
	}
}
