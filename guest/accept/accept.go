// Package accept gives each connection of a listener a goroutine, and ends them
// together.
//
// It owns the listener and the connections that it is given; a handler owns its
// connection only until it returns. It keeps no state: any goroutine may call it,
// once for each listener.
package accept

import (
	"context"
	"net"
	"sync"
)

// Each calls handle for each connection that l accepts, in a goroutine of its own
// and until ctx ends or l fails, which is the error. Then it closes l and every
// connection, ends the context of the handlers, and returns when the last of them
// has. A connection is closed after its handler too.
//
// There is no limit on connections: who may connect is for l to decide.
func Each(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		handlers.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			handle(ctx, conn)
		})
	}
}
