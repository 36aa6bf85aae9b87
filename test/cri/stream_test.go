package cri

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/erofsvm/erofsvm/test/harness/e2etest"
	"github.com/erofsvm/erofsvm/test/image"
)

// The channels of a stream of the CRI (k8s.io/cri-streaming, remotecommand).
const (
	stdin byte = iota
	stdout
	stderr
	status
	resize
)

// stream is a connection to containerd's streaming server, as the kubelet hands
// kubectl's on: each message begins with its channel.
type stream struct {
	t  *testing.T
	ws *websocket.Conn
}

func (r *runtime) stream(t *testing.T, address string) *stream {
	t.Helper()
	at, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := r.node.Dial(step(t), "tcp", at.Host) // it listens on the node's loopback
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(e2etest.Step)); err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig("ws://"+at.Host+at.RequestURI(), "http://"+at.Host)
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	return &stream{t: t, ws: ws}
}

func (s *stream) send(channel byte, text string) {
	s.t.Helper()
	if err := websocket.Message.Send(s.ws, append([]byte{channel}, text...)); err != nil {
		s.t.Fatalf("channel %d: %v", channel, err)
	}
}

// until returns what a channel says up to a text.
func (s *stream) until(channel byte, text string) string {
	s.t.Helper()
	var said strings.Builder
	for !strings.Contains(said.String(), text) {
		var message []byte
		if err := websocket.Message.Receive(s.ws, &message); err != nil {
			s.t.Fatalf("channel %d says %q, and not %q: %v", channel, &said, text, err)
		}
		if len(message) > 0 && message[0] == channel {
			said.Write(message[1:])
		}
	}
	return said.String()
}

// testStreams is what kubectl exec -it, attach and port-forward come down to.
func testStreams(t *testing.T, r *runtime, handler string) {
	p := r.pod(t, handler, nil)
	c := p.start(t, spec{name: "app", image: image.One, script: `while read l; do echo said $l; done; exit 5`, change: func(c *cri.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	}})

	exec, err := r.Exec(step(t), &cri.ExecRequest{
		ContainerId: c.id, Stdin: true, Stdout: true, Tty: true,
		Cmd: []string{"/bin/sh", "-c", `read l; echo heard $l; until [ "$(stty size)" = "40 100" ]; do sleep 0.1; done; echo resized; exit 4`},
	})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	s := r.stream(t, exec.GetUrl())
	s.send(stdin, "words\n")
	s.until(stdout, "heard words\r\n")
	s.send(resize, `{"Width":100,"Height":40}`)
	s.until(stdout, "resized")
	if end := s.until(status, "}"); !strings.Contains(end, `"message":"4"`) {
		t.Errorf("the exec ends with %s", end)
	}

	attach, err := r.Attach(step(t), &cri.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	s = r.stream(t, attach.GetUrl())
	s.send(stdin, "hello\n")
	s.until(stdout, "said hello\n")

	c.sh(t, "mkdir /tmp/www && echo forwarded > /tmp/www/who && busybox httpd -p 127.0.0.1:80 -h /tmp/www")
	forward, err := r.PortForward(step(t), &cri.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	f := r.stream(t, forward.GetUrl())
	f.send(0, "GET /who HTTP/1.0\r\n\r\n")
	f.until(0, "forwarded\n")

	// The one client has gone, and with it the input that was to be had once.
	if err := s.ws.Close(); err != nil {
		t.Error(err)
	}
	if code := c.exit(t); code != 5 {
		t.Errorf("the container ends with %d", code)
	}
	c.logged(t, c.log, "said hello")
	p.remove(t)
}
