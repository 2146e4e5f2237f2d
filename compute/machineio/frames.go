package machineio

import (
	"sync"

	"steadfast/compute/device"
	"steadfast/compute/virtio"
)

// arrivals are the frames that wait for a network card's driver to have room. Live.mu
// guards them.
type arrivals struct {
	waiting [][]byte
	bytes   int
	room    sync.Cond // there is some again, or the life has ended
}

func (a *arrivals) full() bool { return len(a.waiting) >= framesMax || a.bytes >= frameBytesMax }

func (a *arrivals) add(frame []byte) {
	a.waiting = append(a.waiting, frame)
	a.bytes += len(frame)
}

// take removes the first frame.
func (a *arrivals) take() []byte {
	frame := a.waiting[0]
	a.waiting[0] = nil
	if a.waiting = a.waiting[1:]; len(a.waiting) == 0 {
		a.waiting = nil
	}
	a.bytes -= len(frame)
	return frame
}

// Frame gives a network card a frame from its wire, whose checksums are right (see
// virtio.NetFrame). It does not wait: when too many wait for the guest, the frame is
// dropped, and false returned. The frame is the machine's.
func (l *Live) Frame(card int, frame []byte) bool {
	l.mu.Lock()
	a := &l.frames[card]
	ok := !a.full() && !l.ended
	if ok {
		a.add(frame)
	}
	l.mu.Unlock()
	l.ring()
	return ok
}

// FrameWait is Frame that waits instead of dropping a frame; false when the life has ended.
func (l *Live) FrameWait(card int, frame []byte) bool {
	l.mu.Lock()
	a := &l.frames[card]
	for a.full() && !l.ended {
		a.room.Wait()
	}
	ok := !l.ended
	if ok {
		a.add(frame)
	}
	l.mu.Unlock()
	l.ring()
	return ok
}

// deliverFrames gives the cards the frames that the guest has room for, and tells whether
// there were some.
func (l *Live) deliverFrames() (some bool, err error) {
	for card := range l.frames {
		for {
			frame, ok := l.nextFrame(card)
			if !ok {
				break
			}
			in := device.Input{Port: l.m.NetPort(card), Kind: virtio.NetFrame, Data: frame}
			if err := l.deliver(&in); err != nil {
				return some, err
			}
			some = true
		}
	}
	return some, nil
}

// nextFrame takes a frame that waits for a card, if there is one and the guest has room for it.
func (l *Live) nextFrame(card int) (frame []byte, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.frames[card]
	if len(a.waiting) == 0 || !l.m.NetTakes(card, len(a.waiting[0])) {
		return nil, false
	}
	was := a.full()
	frame = a.take()
	if was {
		a.room.Signal()
	}
	return frame, true
}
