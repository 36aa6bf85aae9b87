package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample is an OCI archive with one layer, as `make images` writes them.
func sample(t *testing.T) string {
	t.Helper()
	one, err := layer(file("bin/busybox", "not really").mode(0o755))
	if err != nil {
		t.Fatal(err)
	}
	return writeArchive(t, one)
}

// TestImagesAreServedByTheirOwnNames: a client that trusts the certificate, and
// finds the names where the server is, gets manifests and layers.
func TestImagesAreServedByTheirOwnNames(t *testing.T) {
	images, err := Images(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	probe.Close()
	s, err := Start(address, Hosts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	defer func() {
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	}()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.CA()) {
		t.Fatal("the certificate is none")
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	for ref, index := range images {
		if err := s.Put(ref, index); err != nil {
			t.Fatal(err)
		}
		host, rest, _ := strings.Cut(ref, "/")
		repository, tag, _ := strings.Cut(rest, ":")
		base := "https://" + host + "/v2/" + repository
		get(t, client, base+"/manifests/"+tag)
		for _, layer := range firstImage(t, index).Layers {
			if layer.MediaType.IsDistributable() {
				get(t, client, base+"/blobs/"+layer.Digest.String())
			}
		}
	}
}

func firstImage(t *testing.T, index v1.ImageIndex) *v1.Manifest {
	t.Helper()
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func get(t *testing.T, client *http.Client, url string) {
	t.Helper()
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("%s: %s, %d bytes, %v", url, answer.Status, len(body), err)
	}
}

func TestAnArchiveThatIsNoneIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing.tar")
	if _, err := Images(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "make images") {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(path, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Images(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
}

// TestEachPlatformHasContentOfItsOwn: the tests pull one platform of an image, and
// look for what is missing of the others, also if another image was pulled whole.
func TestEachPlatformHasContentOfItsOwn(t *testing.T) {
	images, err := Images(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	owner := map[v1.Hash]v1.ImageIndex{}
	for name, index := range images {
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[v1.Hash]bool{}
		for _, d := range manifest.Manifests {
			image, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			last, err := layers[len(layers)-1].Digest()
			if err != nil {
				t.Fatal(err)
			}
			if other := owner[last]; seen[last] || other != nil && other != index { // one image may have several names
				t.Errorf("the last layer of %s for %s is that of another", name, d.Platform)
			}
			seen[last], owner[last] = true, index
		}
	}
}
