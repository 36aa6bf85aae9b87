// Package rpcstatus turns errors into what containerd gets over ttrpc. It is pure,
// and any goroutine may call it.
package rpcstatus

import (
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"
)

// Of turns an error into the status that containerd gets: its class and its
// text. errgrpc alone would send the errors that it wraps along, and containerd
// would print each of them again, behind the text that has them already.
func Of(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(status.Convert(errgrpc.ToGRPC(err)).Code(), err.Error())
}
