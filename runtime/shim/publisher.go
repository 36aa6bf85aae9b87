package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// maxEvents bounds the queue while containerd is away.
	maxEvents = 10000
	// forwardDeadline bounds one attempt to send an event.
	forwardDeadline = 5 * time.Second
	// maxBackoff bounds the pause between attempts.
	maxBackoff = 5 * time.Second
)

// publisher sends events to containerd, in order and each until it was taken:
// containerd can be restarted while pods run. An event that containerd took
// just before it died, without saying so, is sent to the next one again. Publish may be called from any
// goroutine and never waits.
type publisher struct {
	address   string // path of containerd's ttrpc socket
	namespace string
	log       *log.Entry

	ctx     context.Context
	cancel  context.CancelFunc
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the sender has ended
	lost    int           // events that were given up; read it once done is closed

	mu     sync.Mutex
	queue  []*types.Envelope
	wake   chan struct{} // has a token when there is something new
	closed bool

	conn *ttrpc.Client // the sender's
}

func newPublisher(address, namespace string, logger *log.Entry) *publisher {
	ctx, cancel := context.WithCancel(context.Background())
	p := &publisher{
		address: strings.TrimPrefix(address, "unix://"), namespace: namespace, log: logger,
		ctx: ctx, cancel: cancel, closing: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	go p.send()
	return p
}

// Publish queues an event.
func (p *publisher) Publish(topic string, event any) {
	payload, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		p.log.WithError(err).Errorf("event %s cannot be encoded", topic)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) >= maxEvents {
		p.log.Errorf("event %s dropped: %d events wait for containerd", p.queue[0].Topic, maxEvents)
		p.queue = p.queue[1:]
	}
	p.queue = append(p.queue, &types.Envelope{
		Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic, Event: payload,
	})
	p.signal()
}

func (p *publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Close sends what is queued and ends, once. What ctx leaves no time for is lost,
// and what nobody is there to take: the containerd that comes next finds this
// shim gone, and tells the end of its tasks by itself.
func (p *publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.signal()
	p.mu.Unlock()
	close(p.closing)
	select {
	case <-p.done:
		if p.lost > 0 {
			return fmt.Errorf("events for containerd: nobody takes %d", p.lost)
		}
		return nil
	case <-ctx.Done():
		p.cancel()
		<-p.done
		return fmt.Errorf("events for containerd: %w", ctx.Err())
	}
}

func (p *publisher) send() {
	defer close(p.done)
	defer p.disconnect()
	for {
		event, closed := p.next()
		if event == nil {
			if closed {
				return
			}
			select {
			case <-p.wake:
			case <-p.ctx.Done():
				return
			}
			continue
		}
		if !p.deliver(event) {
			return
		}
	}
}

func (p *publisher) next() (event *types.Envelope, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		event = p.queue[0]
		p.queue = p.queue[1:]
	}
	return event, p.closed
}

// deliver tries until containerd has the event; false means that the publisher
// was told to end.
func (p *publisher) deliver(event *types.Envelope) bool {
	closing := p.closing
	for backoff := 50 * time.Millisecond; ; backoff = min(2*backoff, maxBackoff) {
		last := p.isClosing()
		err := p.forward(event)
		if err == nil {
			return true
		}
		p.disconnect()
		if p.ctx.Err() != nil {
			return false
		}
		if last && nobody(err) {
			p.lost++
			return true
		}
		p.log.WithError(err).Warnf("event %s not taken, trying again in %s", event.Topic, backoff)
		select {
		case <-time.After(backoff):
		case <-closing: // once, at once
			closing = nil
		case <-p.ctx.Done():
			return false
		}
	}
}

func (p *publisher) isClosing() bool {
	select {
	case <-p.closing:
		return true
	default:
		return false
	}
}

var errNoAddress = errors.New(ttrpcAddressEnv + " is not set")

// nobody says whether an event was not taken because there is no containerd.
func nobody(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, errNoAddress)
}

func (p *publisher) forward(event *types.Envelope) error {
	if p.address == "" {
		return errNoAddress
	}
	ctx, cancel := context.WithTimeout(p.ctx, forwardDeadline)
	defer cancel()
	if p.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", p.address)
		if err != nil {
			return err
		}
		p.conn = ttrpc.NewClient(conn)
	}
	_, err := eventsapi.NewTTRPCEventsClient(p.conn).Forward(ctx, &eventsapi.ForwardRequest{Envelope: event})
	return err
}

func (p *publisher) disconnect() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}
