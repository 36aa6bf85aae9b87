// Package registry serves, over TLS, the images that containerd's client tests
// pull, under the names that the tests have for them. They are made on the spot
// from one image of the tests, and are like those that have these names as far as
// the tests look at them.
//
// A Server owns its listener and its certificate; its methods may be called from
// any goroutine. It must run in a place where those names lead to it.
package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Server is a registry that serves.
type Server struct {
	handler http.Handler
	server  http.Server
	served  chan error
	ca      []byte
}

// Start serves on an address such as "127.0.0.1:443" as each of the hosts. Stop
// must be called.
func Start(address string, hosts []string) (*Server, error) {
	certificate, ca, err := certify(hosts)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	silent := log.New(io.Discard, "", 0)
	s := &Server{handler: registry.New(registry.Logger(silent)), served: make(chan error, 1), ca: ca}
	s.server = http.Server{
		Handler: s.handler, ErrorLog: silent, ReadHeaderTimeout: 30 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	go func() { s.served <- s.server.ServeTLS(listener, "", "") }()
	return s, nil
}

// CA is the certificate, in PEM, that clients must trust.
func (s *Server) CA() []byte { return s.ca }

// Stop ends the connections and the server.
func (s *Server) Stop(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Put makes an image known by a name such as "ghcr.io/containerd/busybox:1.36".
// The host in it is of no consequence.
func (s *Server) Put(ref string, index v1.ImageIndex) error {
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return err
	}
	repository := tag.RepositoryStr()
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	for _, platform := range manifest.Manifests {
		image, err := index.Image(platform.Digest)
		if err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		if err := s.putImage(repository, image); err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
	}
	return s.putManifest(repository, tag.TagStr(), index)
}

func (s *Server) putImage(repository string, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			return err
		}
		digest, err := layer.Digest()
		if err != nil {
			return err
		}
		if err := s.putBlob(repository, digest, content); err != nil {
			return err
		}
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := image.ConfigName()
	if err != nil {
		return err
	}
	if err := s.putBlob(repository, digest, io.NopCloser(bytes.NewReader(config))); err != nil {
		return err
	}
	id, err := image.Digest()
	if err != nil {
		return err
	}
	return s.putManifest(repository, id.String(), image)
}

func (s *Server) putBlob(repository string, digest v1.Hash, content io.ReadCloser) error {
	defer content.Close()
	query := url.Values{"digest": {digest.String()}}
	return s.do(httptest.NewRequest(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?"+query.Encode(), content))
}

func (s *Server) putManifest(repository, reference string, of interface {
	RawManifest() ([]byte, error)
	MediaType() (mediaType, error)
}) error {
	text, err := of.RawManifest()
	if err != nil {
		return err
	}
	kind, err := of.MediaType()
	if err != nil {
		return err
	}
	r := httptest.NewRequest(http.MethodPut, "/v2/"+repository+"/manifests/"+reference, bytes.NewReader(text))
	r.Header.Set("Content-Type", string(kind))
	return s.do(r)
}

// do asks the handler without a connection.
func (s *Server) do(r *http.Request) error {
	answer := httptest.NewRecorder()
	s.handler.ServeHTTP(answer, r)
	if answer.Code != http.StatusCreated {
		return fmt.Errorf("%s %s: %d %s", r.Method, r.URL, answer.Code, answer.Body)
	}
	return nil
}
