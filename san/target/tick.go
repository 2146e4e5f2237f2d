package target

import (
	"time"

	"steadfast/iscsi"
)

// tickEvery is the resolution of keep-alives.
const tickEvery = time.Second

// tickLoop looks after the sessions until the server closes.
func (srv *Server) tickLoop() {
	defer srv.tasks.Done()
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-srv.quit:
			return
		case <-t.C:
			srv.mu.Lock()
			all := srv.all(nil)
			srv.mu.Unlock()
			for _, s := range all {
				s.tick(tickEvery)
			}
			srv.workers.trim()
		}
	}
}

// tick tells s that dt has passed. A silent peer is pinged, and given up when
// the ping stays unanswered; so is one that takes nothing of what is sent.
// One tick for all sessions spares the data path its timers.
func (s *session) tick(dt time.Duration) {
	s.mu.Lock()
	if s.stalls() {
		s.stalled += dt
	} else {
		s.stalled = 0
	}
	if s.heard.Swap(false) {
		s.silent, s.pinging = 0, false
	} else {
		s.silent += dt
	}
	if s.silent == 2*dt && !s.sending && s.out.empty() {
		// An idle session keeps no memory of its last burst.
		s.out, s.spare = new(batch), new(batch)
	}
	times := &s.srv.times
	switch {
	case s.stalled >= times.WriteStall:
		s.mu.Unlock()
		s.close("the initiator moves no data")
	case times.NopInterval > 0 && s.port == nil && s.silent >= times.NopInterval:
		// Who discovers asks and goes; a place held is one less for others.
		s.mu.Unlock()
		s.close("discovery session idle")
	case times.NopInterval > 0 && s.pinging && s.silent >= times.NopInterval+times.NopTimeout:
		s.mu.Unlock()
		s.close("the initiator does not answer pings")
	case times.NopInterval > 0 && !s.pinging && s.silent >= times.NopInterval && !s.broken && s.running:
		s.pinging = true
		s.lastTag++
		if s.lastTag == iscsi.NoTag {
			s.lastTag = 1
		}
		s.nopIn(s.lastTag)
		s.sendAside()
	default:
		s.mu.Unlock()
	}
}

// slowest is how many bytes a peer that holds memory must move in a tick while
// the server is short of it.
const slowest = 64 << 10

// stalls reports whether the peer moved less data since the last tick than it
// has to: a byte of what is sent to it; and while others wait for memory, an
// amount that gives hope, of what is sent and of what was asked for by R2T.
// Under s.mu.
func (s *session) stalls() bool {
	out, in := s.bytesOut.Load(), s.bytesIn.Load()
	sent, came := out-s.lastOut, in-s.lastIn
	s.lastOut, s.lastIn = out, in
	if !s.srv.budget.short() {
		return s.sending && sent == 0
	}
	if s.sending && sent < slowest {
		return true
	}
	if came >= slowest {
		return false
	}
	for _, c := range s.collect {
		if c.nseqs > 0 || c.unsolicited && c.granted {
			return true
		}
	}
	return false
}

// nopIn adds a NOP-In: one that wants an answer, or with NoTag one that only
// carries the command window. Under s.mu. RFC 7143, 11.19.
func (s *session) nopIn(tag uint32) {
	h := s.header()
	h.SetOpcode(iscsi.OpNopIn)
	h.SetFlags(iscsi.FlagFinal)
	h.SetInitiatorTag(iscsi.NoTag)
	h.SetTargetTag(tag)
	h.SetStatSN(s.statSN) // the next one, not used up
	s.endHeader()
}

// sendAside sends on a goroutine of its own, so that a caller who serves many
// sessions never waits for one peer's socket. Called with s.mu held; returns
// with it released.
func (s *session) sendAside() {
	if s.sending || s.out.empty() {
		s.mu.Unlock()
		return
	}
	s.sending = true
	s.mu.Unlock()
	go func() {
		s.mu.Lock()
		s.sendLoop(false)
	}()
}

// async begins an asynchronous message. Under s.mu. RFC 7143, 11.9.
func (s *session) async(event uint8) *iscsi.Header {
	h := s.header()
	h.SetOpcode(iscsi.OpAsync)
	h.SetFlags(iscsi.FlagFinal)
	h.SetInitiatorTag(iscsi.NoTag)
	s.stat(h)
	h.SetAsyncEvent(event)
	return h
}

// askOut asks the initiator to log out within d. RFC 7143, 11.9.1, event 1.
func (s *session) askOut(d time.Duration) {
	s.mu.Lock()
	if s.quit == 0 && !s.broken {
		s.quit = max(d, time.Second)
		s.appendQuit()
	}
	s.sendAside()
}

// appendQuit adds the request to log out, once the login is over. Under s.mu.
func (s *session) appendQuit() {
	if !s.running {
		return // run will
	}
	h := s.async(iscsi.AsyncLogout)
	h.SetAsyncParameter(3, uint16(s.quit/time.Second))
	s.endHeader()
}
