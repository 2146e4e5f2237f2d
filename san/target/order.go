package target

import (
	"errors"

	"steadfast/iscsi"
)

// earlyMax bounds the data of one session's requests that came before their
// turn, in bytes. The budget counts it as well.
const earlyMax = 1 << 20

// early is a request that came before its turn: with its data, or empty when
// task management said to take it as received.
type early struct {
	header iscsi.Header
	ahs    []byte
	data   []byte
	skip   bool
}

// outOfOrder deals with a request whose CmdSN is not the next. RFC 7143,
// 4.2.2.1: outside the window, or seen before, it is ignored; inside, it
// waits for its turn. On one TCP connection the latter needs an initiator
// that numbers its requests strangely.
func (s *session) outOfOrder(h *iscsi.Header, ahs []byte, n int) error {
	sn := h.CmdSN()
	s.mu.Lock()
	max := s.maxCmdSN
	s.mu.Unlock()
	if iscsi.SNLess(sn, s.expCmdSN) || iscsi.SNLess(max, sn) || s.reorder[sn] != nil {
		s.srv.logs.warn("request ignored", "command number outside the window", s.remote, "initiator", s.id.InitiatorName)
		return s.in.discard(n)
	}
	if s.earlySize+n > earlyMax || s.srv.budget.short() {
		return errors.New("too much data of requests before their turn")
	}
	data, ok, err := s.small(h, n)
	if err != nil || !ok {
		return err
	}
	s.earlySize += n
	s.srv.budget.hold(s, int64(n))
	s.reorder[sn] = &early{header: *h, ahs: ahs, data: data}
	return nil
}

// replay handles the requests whose turn has come.
func (s *session) replay() error {
	for {
		e := s.reorder[s.expCmdSN]
		if e == nil {
			return nil
		}
		delete(s.reorder, s.expCmdSN)
		s.giveEarly(len(e.data))
		s.mu.Lock()
		s.expCmdSN++
		s.mu.Unlock()
		if e.skip {
			continue
		}
		if err := s.handleEarly(e); err != nil {
			return err
		}
	}
}

// giveEarly takes n bytes of requests before their turn off the books.
func (s *session) giveEarly(n int) {
	s.earlySize -= n
	s.srv.budget.give(s, int64(n))
}

// skipEarly takes the requests that match as received, and never performs
// them; it returns how many.
func (s *session) skipEarly(match func(*iscsi.Header) bool) int {
	n := 0
	for sn, e := range s.reorder {
		if e.skip || !match(&e.header) {
			continue
		}
		s.giveEarly(len(e.data))
		s.reorder[sn] = &early{skip: true}
		n++
	}
	return n
}

// handleEarly handles a request with its data read already: an
// input that ends behind it takes the place of the connection's. Its digest
// was checked.
func (s *session) handleEarly(e *early) error {
	live := s.in
	padded := append(e.data[:len(e.data):len(e.data)], zeroHeader[:iscsi.Padding(len(e.data))]...)
	s.in = &input{buf: padded, w: len(padded), eof: true}
	err := s.handle(&e.header, e.ahs, len(e.data))
	s.in = live
	return err
}
