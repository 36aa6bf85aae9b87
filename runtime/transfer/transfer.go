// Package transfer copies files into containers and out of them, as containerd's
// transfer service asks for it (containerd.services.transfer.v1): tar archives
// between a stream that the client has opened to the shim and a path in a
// container.
//
// It owns the streams that it claims, for one call each. The ttrpc server calls it
// from any goroutine. Other sources and destinations, such as images, are not the
// shim's and are refused.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"

	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	types "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/erofsvm/erofsvm/runtime/rpcstatus"
)

// Containers are what files are copied into and out of.
type Containers interface {
	// Unpack writes a tar archive into a directory of a container, which is made
	// if it is missing, and gives files the owners of the archive if owners is set.
	Unpack(ctx context.Context, id, path string, owners bool, archive io.Reader) error
	// Pack writes a tar archive of a path, or of its entry alone.
	Pack(ctx context.Context, id, path string, entry bool, archive io.Writer) error
}

// Stream is one that a client has opened to the shim.
type Stream interface {
	Read(ctx context.Context, buf []byte) (int, error)
	Write(ctx context.Context, data []byte) (int, error)
	// Finish makes Read return io.EOF once the client has no more.
	Finish()
	Close()
}

// Streams claims the stream that a client has named.
type Streams func(id string) (Stream, error)

// mediaType is that of the archives. A client may leave it out.
const mediaType = "application/x-tar"

// Service is the transfer service of one shim.
type Service struct {
	containers Containers
	streams    Streams
}

// New returns a service.
func New(containers Containers, streams Streams) *Service {
	return &Service{containers: containers, streams: streams}
}

// Register adds the service to a server, before it serves.
func (s *Service) Register(server *ttrpc.Server) {
	transferapi.RegisterTTRPCTransferService(server, s)
}

// Transfer copies from one to the other, until ctx ends.
func (s *Service) Transfer(ctx context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	if err := s.transfer(ctx, r); err != nil {
		return nil, rpcstatus.Of(err)
	}
	return &emptypb.Empty{}, nil
}

func (s *Service) transfer(ctx context.Context, r *transferapi.TransferRequest) error {
	var path types.ContainerPath
	var in types.ReadStream
	var out types.WriteStream
	switch {
	case is(r.Source, &in) && is(r.Destination, &path):
		if err := check(&path, in.MediaType); err != nil {
			return err
		}
		return s.copy(ctx, in.Stream, func(stream Stream) error {
			stream.Finish()
			return s.containers.Unpack(ctx, path.ContainerID, path.Path, path.PreserveOwnership, reader{ctx, stream})
		})
	case is(r.Source, &path) && is(r.Destination, &out):
		if err := check(&path, out.MediaType); err != nil {
			return err
		}
		return s.copy(ctx, out.Stream, func(stream Stream) error {
			return s.containers.Pack(ctx, path.ContainerID, path.Path, path.NoWalk, writer{ctx, stream})
		})
	}
	return fmt.Errorf("transfer from %q to %q: the shim copies between a stream and a path in a container: %w",
		r.GetSource().GetTypeUrl(), r.GetDestination().GetTypeUrl(), errdefs.ErrInvalidArgument)
}

// copy claims a stream for f, and ends it for the client.
func (s *Service) copy(ctx context.Context, id string, f func(Stream) error) error {
	stream, err := s.streams(id)
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := f(stream); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return nil
}

// is unpacks a message, if it is of m's type.
func is(packed *anypb.Any, m proto.Message) bool {
	return packed.MessageIs(m) && packed.UnmarshalTo(m) == nil
}

func check(path *types.ContainerPath, media string) error {
	if media != "" && media != mediaType {
		return fmt.Errorf("transfer of %q, the shim copies %s: %w", media, mediaType, errdefs.ErrInvalidArgument)
	}
	if path.ContainerID == "" || path.Path == "" {
		return fmt.Errorf("transfer without a container or a path in it: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// reader and writer are a stream as package io has them, for one call.
type reader struct {
	ctx    context.Context
	stream Stream
}

func (r reader) Read(buf []byte) (int, error) { return r.stream.Read(r.ctx, buf) }

type writer struct {
	ctx    context.Context
	stream Stream
}

func (w writer) Write(data []byte) (int, error) { return w.stream.Write(w.ctx, data) }
