package k8s

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// look is how often the tests ask for what has no event.
const look = 200 * time.Millisecond

// daemon is a program of the cluster that runs until the test ends.
type daemon struct {
	name, log string
	cmd       *exec.Cmd
	exited    chan struct{} // closed when it has been waited for
}

// start starts a program of the tools. It is stopped at the end of the test, after
// those that were started later.
func (c *cluster) start(t *testing.T, name string, args ...string) *daemon {
	t.Helper()
	d := &daemon{name: name, log: filepath.Join(c.dir, name+".log"), exited: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(c.program(name), args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = c.environment()
	d.cmd.Dir = c.dir
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // its log says why it ended
		close(d.exited)
	}()
	c.daemons = append(c.daemons, d)
	t.Cleanup(func() {
		if t.Failed() { // before it speaks of its end
			t.Logf("the end of what %s says:\n%s", name, d.said(40))
		}
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		keep(t, d.log)
	})
	return d
}

// stop ends the program.
func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended by itself
	select {
	case <-d.exited:
		return nil
	case <-time.After(20 * time.Second):
	}
	_ = d.cmd.Process.Kill()
	<-d.exited
	return fmt.Errorf("%s did not end", d.name)
}

// keep copies a log to where the flag says, if it does.
func keep(t *testing.T, path string) {
	if *logs == "" {
		return
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.MkdirAll(*logs, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(*logs, filepath.Base(path)), text, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// said is the end of its log.
func (d *daemon) said(lines int) string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return tail(string(text), lines)
}

// answers waits until an address says "ok".
func (c *cluster) answers(t *testing.T, d *daemon, url string) {
	t.Helper()
	client := c.client(t, c.admin)
	defer client.CloseIdleConnections()
	began, last := time.Now(), ""
	done := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			last = err.Error()
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		last = fmt.Sprintf("%s: %s, %v", resp.Status, text, err)
		return resp.StatusCode == http.StatusOK
	}
	if !c.poll(2*time.Minute, d, done) {
		t.Fatalf("%s does not answer at %s: %s", d.name, url, last)
	}
	t.Logf("%s is ready after %v", d.name, time.Since(began).Round(10*time.Millisecond))
}

// poll asks until done says so, time is up, or the daemon, if there is one, has
// ended.
func (c *cluster) poll(limit time.Duration, d *daemon, done func() bool) bool {
	tick, deadline := time.NewTicker(look), time.After(limit)
	defer tick.Stop()
	var exited chan struct{}
	if d != nil {
		exited = d.exited
	}
	for {
		if done() {
			return true
		}
		select {
		case <-tick.C:
		case <-exited:
			return false
		case <-deadline:
			return false
		}
	}
}

// client speaks to the cluster's own servers.
func (c *cluster) client(t *testing.T, as identity) *http.Client {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(as.cert, as.key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(c.ca.path)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS12,
	}}}
}
