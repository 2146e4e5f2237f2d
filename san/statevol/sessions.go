package statevol

import (
	"net/netip"
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// Session is both ends of a client's connection to an alias address.
type Session struct {
	Alias  netip.AddrPort
	Client netip.AddrPort
}

// Sessions is the table of sessions. Its methods may be called from several
// goroutines; only Sync and State.Close wait for the device.
type Sessions struct {
	dev block.Device

	mu      sync.Mutex
	idle    sync.Cond // writing has become false
	table   [SessionsMax]Session
	places  map[Session]int
	free    []int // places, the lowest last
	dirty   [sessionBlocks]bool
	writing bool // a goroutine writes what is dirty
	closed  bool
	err     error // why the last write failed
}

// load reads the table. Two places may hold one session after a loss of power:
// one of them counts, and the other goes with the next change.
func (t *Sessions) load() error {
	b := make([]byte, sessionBlocks*block.BlockSize)
	if err := t.dev.ReadAt(b, sessionFirst*block.BlockSize); err != nil {
		return err
	}
	t.places = map[Session]int{}
	for i := SessionsMax - 1; i >= 0; i-- {
		s, ok := decodeSession(b[i*sessionLen : (i+1)*sessionLen])
		if _, double := t.places[s]; !ok || double {
			t.free = append(t.free, i)
			t.dirty[i/sessionsPer] = t.dirty[i/sessionsPer] || ok
			continue
		}
		t.table[i] = s
		t.places[s] = i
	}
	return nil
}

// List returns the sessions there are, by place. After Open they are those of
// who had the volume open before, and may lack its last ones.
func (t *Sessions) List() []Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Session, 0, len(t.places))
	for _, s := range t.table {
		if s != (Session{}) {
			list = append(list, s)
		}
	}
	return list
}

// Add enters a session; one that is there already is none more. Fails with
// fault.Limit when there is no place, and with fault.Invalid for what is no
// connection of one address family: such a client will not be tickled, and
// finds out by itself.
func (t *Sessions) Add(s Session) error {
	s, ok := plain(s)
	if !ok {
		return fault.New(fault.Invalid, "a session between %s and %s", s.Alias, s.Client)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.places[s]; there {
		return nil
	}
	if len(t.free) == 0 {
		return fault.New(fault.Limit, "all %d places for sessions are taken", SessionsMax)
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.put(i, s)
	return nil
}

// Remove takes a session out, if it is there.
func (t *Sessions) Remove(s Session) {
	s, _ = plain(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, there := t.places[s]; there {
		t.free = append(t.free, i)
		t.put(i, Session{})
	}
}

// Clear takes all sessions out: who took over and has tickled them.
func (t *Sessions) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s, i := range t.places {
		t.free = append(t.free, i)
		t.put(i, Session{})
		delete(t.places, s)
	}
}

// put changes a place and has it written. Under mu.
func (t *Sessions) put(i int, s Session) {
	delete(t.places, t.table[i])
	t.table[i] = s
	if s != (Session{}) {
		t.places[s] = i
	}
	t.dirty[i/sessionsPer] = true
	if !t.writing && !t.closed {
		t.writing = true
		go t.write()
	}
}

// write writes dirty blocks until there are none; changes that come meanwhile
// go into one write of their block. It ends with the first failure: what is
// dirty then goes with the next change.
func (t *Sessions) write() {
	b := make([]byte, block.BlockSize)
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		n := t.nextDirty()
		if n < 0 {
			break
		}
		t.dirty[n] = false
		for i := range sessionsPer {
			encodeSession(b[i*sessionLen:], t.table[n*sessionsPer+i])
		}
		t.mu.Unlock()
		err := t.dev.WriteAt(b, int64(sessionFirst+n)*block.BlockSize, 0)
		t.mu.Lock()
		if t.err = err; err != nil {
			t.dirty[n] = true
			break
		}
	}
	t.writing = false
	t.idle.Broadcast()
}

// nextDirty returns a dirty block, -1 when there is none or when none is to be
// written any more. Under mu.
func (t *Sessions) nextDirty() int {
	for n, dirty := range t.dirty {
		if dirty && !t.closed {
			return n
		}
	}
	return -1
}

// Sync returns when what was changed before is with the device. Fails with the
// error of the write that did not get there, and with fault.Canceled after
// State.Close.
func (t *Sessions) Sync() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	if !t.writing && t.nextDirty() >= 0 {
		t.writing = true
		go t.write()
	}
	for t.writing {
		t.idle.Wait()
	}
	switch {
	case t.closed:
		return errClosed
	case t.nextDirty() >= 0:
		return t.err
	}
	return nil
}

var errClosed = fault.New(fault.Canceled, "the state volume is closed")

// close ends the writing.
func (t *Sessions) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for t.writing {
		t.idle.Wait()
	}
}
