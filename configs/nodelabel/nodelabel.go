// Package nodelabel keeps the labels of a node of Kubernetes true: whether the
// host can run VMs, and whether the runtime is installed on it.
//
// It owns the labels that package hostcheck names, on one node, and speaks to the
// cluster with the account of the pod that it runs in: one request, a merge patch,
// for which a client of Kubernetes' own would be most of the program. A Client may
// be used from any goroutine.
package nodelabel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// accountDir is where a pod finds its account (ServiceAccount admission).
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

const (
	// requestTimeout is for one request.
	requestTimeout = 30 * time.Second
	// maxAnswer bounds what is read of an answer, in bytes.
	maxAnswer = 1 << 20
)

// Client speaks to the API server of a cluster.
type Client struct {
	base   url.URL
	dir    string
	client *http.Client
}

// InCluster is for the cluster whose pod this is. getenv is os.Getenv.
func InCluster(getenv func(string) string) (*Client, error) {
	return newClient(getenv, accountDir)
}

func newClient(getenv func(string) string, dir string) (*Client, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and _PORT are not set: this is no pod of a cluster")
	}
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s has no certificate", filepath.Join(dir, "ca.crt"))
	}
	return &Client{
		base: url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)},
		dir:  dir,
		client: &http.Client{
			Timeout:       requestTimeout,
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Patch sets labels of a node, and removes those whose value is nil.
func (c *Client) Patch(ctx context.Context, node string, labels map[string]*string) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	at := c.base.JoinPath("api/v1/nodes", url.PathEscape(node))
	r, err := http.NewRequestWithContext(ctx, http.MethodPatch, at.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	// It is replaced while the pod runs.
	token, err := os.ReadFile(filepath.Join(c.dir, "token"))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	r.Header.Set("Content-Type", "application/merge-patch+json")
	answer, err := c.client.Do(r)
	if err != nil {
		return fmt.Errorf("label node %s: %w", node, err)
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode == http.StatusOK {
		return err
	}
	var status struct{ Message string }
	_ = json.Unmarshal(said, &status) // the status says enough without
	return fmt.Errorf("label node %s: %s: %.500s", node, answer.Status, status.Message)
}
