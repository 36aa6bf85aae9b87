package nodelabel

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofsvm/erofsvm/configs/hostcheck"
)

// cluster is an API server that answers with one status, and a client for it.
func cluster(t *testing.T, status int, answer string) (*Client, *[]*http.Request, *[]string) {
	t.Helper()
	var requests []*http.Request
	var bodies []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		requests, bodies = append(requests, r), append(bodies, string(body))
		w.WriteHeader(status)
		if _, err := io.WriteString(w, answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string][]byte{"ca.crt": authority, "token": []byte("secret\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": at.Hostname(), "KUBERNETES_SERVICE_PORT": at.Port()}[name]
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, &requests, &bodies
}

func ptr(s string) *string { return &s }

func TestLabelsAreAMergePatchOfTheNode(t *testing.T) {
	c, requests, bodies := cluster(t, http.StatusOK, "{}")
	if err := c.Patch(t.Context(), "node-1", map[string]*string{hostcheck.LabelReady: ptr("true"), hostcheck.LabelKVM: nil}); err != nil {
		t.Fatal(err)
	}
	r := (*requests)[0]
	if r.Method != "PATCH" || r.URL.Path != "/api/v1/nodes/node-1" || r.Header.Get("Content-Type") != "application/merge-patch+json" || r.Header.Get("Authorization") != "Bearer secret" {
		t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
	}
	var body any
	if err := json.Unmarshal([]byte((*bodies)[0]), &body); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(body), "map[metadata:map[labels:map[erofsvm.io/kvm:<nil> erofsvm.io/ready:true]]]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestWhatTheClusterSaysAgainstItIsTold(t *testing.T) {
	c, _, _ := cluster(t, http.StatusForbidden, `{"kind":"Status","message":"nodes \"n\" is forbidden"}`)
	if err := c.Patch(t.Context(), "n", nil); err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("%v", err)
	}
	c, _, _ = cluster(t, http.StatusFound, "")
	if err := c.Patch(t.Context(), "n", nil); err == nil {
		t.Error("a redirection was followed")
	}
}

func TestAnotherClustersCertificateIsNotTaken(t *testing.T) {
	c, _, _ := cluster(t, http.StatusOK, "{}")
	other, requests, _ := cluster(t, http.StatusOK, "{}")
	c.base = other.base
	c.client.Transport.(*http.Transport).TLSClientConfig.ServerName = "somebody.example"
	if err := c.Patch(t.Context(), "n", nil); err == nil || len(*requests) != 0 {
		t.Errorf("%v, and %d requests", err, len(*requests))
	}
}

func TestOutsideOfAPodItSaysSo(t *testing.T) {
	if _, err := InCluster(func(string) string { return "" }); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("%v", err)
	}
}

func TestTheKeeperGoesOnAfterAnErrorAndEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	looks := 0
	k := keeper{
		node: "n",
		say:  func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) },
		look: func(context.Context) (map[string]*string, error) { return map[string]*string{"a": ptr("x")}, nil },
		patch: func(context.Context, string, map[string]*string) error {
			looks++
			switch looks {
			case 1, 2:
				return errors.New("refused")
			case 5:
				cancel()
			}
			return nil
		},
	}
	if err := k.run(ctx, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if want := []string{"refused", "node n: a=x "}; !slices.Equal(said, want) || looks != 5 {
		t.Errorf("after %d looks it said %q, want %q", looks, said, want)
	}
}

func TestLabelsAreThoseOfTheCheck(t *testing.T) {
	flags := hostcheck.Flags{Root: t.TempDir(), Config: "/etc/erofsvm/configuration.toml", Shim: "shim", Containerd: "containerd"}
	got, err := wanted(t.Context(), &flags, false)
	if err != nil || got[hostcheck.LabelReady] == nil || *got[hostcheck.LabelReady] != "false" || got[hostcheck.LabelKVM] == nil {
		t.Errorf("an empty host: %v, %v", got, err)
	}
	got, err = wanted(t.Context(), &flags, true)
	if err != nil || len(got) != 2 || got[hostcheck.LabelReady] != nil {
		t.Errorf("to remove: %v, %v", got, err)
	}
}
