package streamwire

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// TestABatchGrowsWithWhatItCarries, and arrives as frames in their order.
func TestABatchGrowsWithWhatItCarries(t *testing.T) {
	var b Batch
	var w writes
	var want []byte
	next := byte(0)
	fill := func(most int) int {
		total := 0
		for room := b.Room(); room != nil && total < most; room = b.Room() {
			n := min(len(room), most-total)
			next++
			copy(room, bytes.Repeat([]byte{next}, n))
			want = append(want, room[:n]...)
			if err := b.Add(n); err != nil {
				t.Fatal(err)
			}
			total += n
		}
		if err := b.Send(&w); err != nil {
			t.Fatal(err)
		}
		return total
	}
	for i, sent := range []struct{ most, want int }{
		{100, 100}, {fewBytes - 1, fewBytes - 1}, {BatchBytes, fewBytes}, // full
		{MaxFrame - 1, MaxFrame - 1}, {BatchBytes, MaxFrame}, // full again
		{BatchBytes, BatchBytes}, {MaxFrame + 7, MaxFrame + 7}, {BatchBytes + 1, BatchBytes}, {1, 1},
	} {
		if got := fill(sent.most); got != sent.want || w.n != i+1 {
			t.Errorf("%d: %d of %d bytes, in %d writes, want %d in one more", i, got, sent.most, w.n, sent.want)
		}
	}
	var got []byte
	var f Frame
	for {
		data, err := f.Receive(&w)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			break // no end was sent
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, data...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrive, and not the %d that were sent", len(got), len(want))
	}
}

func TestABatchHasNoEmptyFrames(t *testing.T) {
	var b Batch
	var w writes
	for _, n := range []int{0, -1, fewBytes + 1} {
		if err := b.Add(n); err == nil {
			t.Errorf("a frame of %d bytes", n)
		}
	}
	if err := b.Send(&w); err != nil || w.n != 0 {
		t.Errorf("an empty batch: %d writes, %v", w.n, err)
	}
}

// TestABatchThatFailedIsEmpty: the bytes are lost, and those of the next one are not
// behind them.
func TestABatchThatFailedIsEmpty(t *testing.T) {
	var b Batch
	b.Room()[0] = 1
	if err := b.Add(1); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(failing{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
	var w writes
	if err := b.Send(&w); err != nil || w.Len() != 0 {
		t.Errorf("%d bytes are left, %v", w.Len(), err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
