package install

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pullForPods pulls an image as a kubelet does, one for our runtime and one for
// the administrator's, and looks which snapshotter has it.
func pullForPods(t *testing.T, socket string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	containerd, err := client.New(socket, client.WithDefaultNamespace("k8s.io"))
	if err != nil {
		t.Fatal(err)
	}
	defer containerd.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for handler, want := range map[string]string{"erofsvm": "erofs", "theirs": "overlayfs"} {
		ref := strings.TrimPrefix(server.URL, "http://") + "/" + handler + ":latest"
		push(t, ref)
		_, err = cri.NewImageServiceClient(conn).PullImage(ctx, &cri.PullImageRequest{
			Image:         &cri.ImageSpec{Image: ref, RuntimeHandler: handler},
			SandboxConfig: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"}},
		})
		if err != nil {
			t.Errorf("pull for the runtime %s: %v", handler, err)
			continue
		}
		image, err := containerd.GetImage(ctx, ref)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, snapshotter := range []string{"erofs", "overlayfs"} {
			if there, err := image.IsUnpacked(ctx, snapshotter); err != nil || there != (snapshotter == want) {
				t.Errorf("the image for the runtime %s is in %s: %v, %v", handler, snapshotter, there, err)
			}
		}
	}
}

// push puts an image of two layers of its own into a registry.
func push(t *testing.T, ref string) {
	t.Helper()
	image, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: config.RootFS})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	host, repository, _ := strings.Cut(strings.TrimSuffix(ref, ":latest"), "/")
	base := "http://" + host + "/v2/" + repository
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		digest, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		send(t, http.MethodPost, base+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", content)
	}
	configuration, err := image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPost, base+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", bytes.NewReader(configuration))
	manifest, err := image.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	media, err := image.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	send(t, http.MethodPut, base+"/manifests/latest", string(media), bytes.NewReader(manifest))
}

func send(t *testing.T, method, url, media string, body io.Reader) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", media)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s", method, url, answer.Status)
	}
}
