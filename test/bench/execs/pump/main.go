// Command pump is the end in the guest of a bare vsock connection: static, and in
// no need of anything of the image.
//
//	pump port out bytes   writes so many bytes to the first connection to a port
//	pump port in          reads it to its end, and says how many bytes there were
//	pump wait             nothing, until it is killed
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/mdlayher/vsock"

	"github.com/erofsvm/erofsvm/guest/rawio"
)

// packet is what the agent writes to a vsock at a time (guest/agent/vsock.go).
const packet = 31 << 10

// piece is what is read at a time.
const piece = 64 << 10

func main() {
	if err := pump(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pump:", err)
		os.Exit(1)
	}
}

func pump(args []string) error {
	switch {
	case len(args) == 3 && args[1] == "out":
		return listen(args[0], func(conn io.ReadWriter) error { return pour(conn, args[2]) })
	case len(args) == 2 && args[1] == "in":
		return listen(args[0], func(conn io.ReadWriter) error { return swallow(conn) })
	case len(args) == 1 && args[0] == "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
		<-stop
		return nil
	}
	return errors.New("no such command")
}

func pour(to io.Writer, count string) error {
	left, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return err
	}
	buf := make([]byte, packet)
	for left > 0 {
		n, err := to.Write(buf[:min(left, packet)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func swallow(from io.Reader) error {
	buf := make([]byte, piece)
	var count int64
	for {
		n, err := from.Read(buf)
		count += int64(n)
		if errors.Is(err, io.EOF) {
			_, err := fmt.Println(count, "bytes")
			return err
		}
		if err != nil {
			return err
		}
	}
}

// listen says when it can be dialled.
func listen(port string, do func(io.ReadWriter) error) error {
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	l, err := vsock.ListenContextID(vsockAny, uint32(n), nil)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("listening")
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err == nil {
		err = do(rawio.ReadWriter{Raw: raw})
	}
	return errors.Join(err, conn.Close())
}

// vsockAny is VMADDR_CID_ANY of linux/vm_sockets.h.
const vsockAny = 1<<32 - 1
