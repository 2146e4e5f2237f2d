package host

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/block"
	"steadfast/compute/initiator"
	"steadfast/fault"
	"steadfast/iscsi"
)

// san is a storage of the tests': volumes with reservations, and a judge of who writes.
type san struct {
	mu      sync.Mutex
	volumes map[At]*unit
	isids   map[iscsi.ISID]string // which host had it, for ever
	faults  []string
}

// unit is a volume. It is under san.mu.
type unit struct {
	data   []byte
	regs   []registration
	holder *nexus
	kind   uint8
	full   bool
	fails  error // of writes
	writes int
	// conflicts counts the changes that were refused.
	conflicts int
}

type registration struct {
	n   *nexus
	key uint64
}

func newSAN() *san { return &san{volumes: map[At]*unit{}, isids: map[iscsi.ISID]string{}} }

func (s *san) add(at At, size int64) *unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[at] = &unit{data: make([]byte, size)}
	return s.volumes[at]
}

func (s *san) sector(at At, i int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(bytes.TrimRight(s.volumes[at].data[i*block.SectorSize:(i+1)*block.SectorSize], "\x00"))
}

func (s *san) setSector(at At, i int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.volumes[at].data[i*block.SectorSize : (i+1)*block.SectorSize]
	clear(p)
	copy(p, text)
}

// change has a volume changed by the test.
func (s *san) change(at At, do func(*unit)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s.volumes[at])
}

// way is one host's way to the storage.
type way struct {
	s    *san
	name string

	mu     sync.Mutex
	thawed chan struct{} // closed: commands arrive; else those that holds names are on their way until it is
	holds  func(u *unit, change bool, off int64) bool
	sent   atomic.Int64  // commands that were held, since the last freeze
	away   time.Duration // for how long its disks say that they have had no path
	broken error         // of Open
	opened int
	flying sync.WaitGroup
}

func (s *san) way(name string) *way {
	w := &way{s: s, name: name, thawed: make(chan struct{})}
	close(w.thawed)
	return w
}

func all(*unit, bool, int64) bool                { return true }
func changes(_ *unit, change bool, _ int64) bool { return change }

func (w *way) freeze(holds func(u *unit, change bool, off int64) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.thawed, w.holds = make(chan struct{}), holds
	w.sent.Store(0)
}

func (w *way) thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.thawed:
	default:
		close(w.thawed)
	}
}

func (w *way) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = err
}

// open is an OpenFunc.
func (w *way) open(_ context.Context, at At, isid iscsi.ISID) (Volume, error) {
	w.mu.Lock()
	err := w.broken
	w.opened++
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	u := w.s.volumes[at]
	if u == nil {
		return nil, fault.New(fault.NotFound, "no volume %v", at)
	}
	if by, ok := w.s.isids[isid]; ok && by == w.name {
		w.s.faults = append(w.s.faults, "an ISID was used twice")
	}
	w.s.isids[isid] = w.name
	return &nexus{w: w, u: u, closed: make(chan struct{})}, nil
}

// nexus is a Volume.
type nexus struct {
	w      *way
	u      *unit
	once   sync.Once
	closed chan struct{}
}

// do has a command arrive, and its answer come back. Who does not wait for it any more has
// it land all the same.
func (n *nexus) do(command func() error) error { return n.send(false, 0, command) }

func (n *nexus) send(change bool, off int64, command func() error) error {
	n.w.mu.Lock()
	thawed := n.w.thawed
	if n.w.holds != nil && !n.w.holds(n.u, change, off) {
		thawed = nil
	}
	n.w.mu.Unlock()
	select {
	case <-n.closed:
		return fault.New(fault.Canceled, "the disk is closed")
	default:
	}
	answer := make(chan error, 1)
	n.w.flying.Go(func() {
		if thawed != nil {
			n.w.sent.Add(1)
			<-thawed
		}
		n.w.s.mu.Lock()
		defer n.w.s.mu.Unlock()
		answer <- command()
	})
	select {
	case err := <-answer:
		return err
	case <-n.closed:
		return fault.New(fault.Canceled, "the disk is closed")
	}
}

// key is the nexus's registration, 0 for none. Under san.mu, as the rest.
func (u *unit) key(n *nexus) uint64 {
	for _, r := range u.regs {
		if r.n == n {
			return r.key
		}
	}
	return 0
}

func conflict() error { return fault.New(fault.Fenced, "reservation conflict") }

// change does a command that changes data.
func (n *nexus) change(off, size int64, do func()) error {
	return n.send(true, off, func() error {
		u := n.u
		switch {
		case u.holder != nil && u.key(n) == 0:
			u.conflicts++
			return conflict()
		case u.full:
			return fault.New(fault.Full, "the pool is full")
		case u.fails != nil:
			return u.fails
		case off < 0 || size < 0 || off > int64(len(u.data))-size:
			return fault.New(fault.Invalid, "%d bytes at %d", size, off)
		}
		u.writes++
		do()
		return nil
	})
}

func (n *nexus) ReadAt(p []byte, off int64) error {
	got := make([]byte, len(p)) // who gave up has its memory back
	err := n.send(false, off, func() error {
		if off < 0 || off > int64(len(n.u.data))-int64(len(got)) {
			return fault.New(fault.Invalid, "%d bytes at %d", len(got), off)
		}
		copy(got, n.u.data[off:])
		return nil
	})
	if err == nil {
		copy(p, got)
	}
	return err
}

func (n *nexus) WriteAt(p []byte, off int64, _ block.Flags) error {
	p = bytes.Clone(p)
	return n.change(off, int64(len(p)), func() { copy(n.u.data[off:], p) })
}

func (n *nexus) Flush() error { return n.do(func() error { return nil }) }

func (n *nexus) Trim(off, size int64) error { return n.Zero(off, size, 0) }

func (n *nexus) Zero(off, size int64, _ block.Flags) error {
	return n.change(off, size, func() { clear(n.u.data[off : off+size]) })
}

func (n *nexus) CompareAndWrite(off int64, old, data []byte, _ block.Flags) (int64, error) {
	old, data = bytes.Clone(old), bytes.Clone(data)
	at := make(chan int64, 1)
	err := n.change(off, int64(len(old)), func() {
		is := n.u.data[off : off+int64(len(old))]
		if !bytes.Equal(is, old) {
			at <- 0
			return
		}
		copy(is, data)
		at <- -1
	})
	if err != nil {
		return 0, err
	}
	return <-at, nil
}

func (n *nexus) Size() int64 {
	n.w.s.mu.Lock()
	defer n.w.s.mu.Unlock()
	return int64(len(n.u.data))
}

func (n *nexus) Register(_ context.Context, key uint64) error {
	return n.do(func() error {
		for i := range n.u.regs {
			if n.u.regs[i].n == n {
				n.w.s.faults = append(n.w.s.faults, "a nexus was registered twice")
				n.u.regs[i].key = key
				return nil
			}
		}
		n.u.regs = append(n.u.regs, registration{n, key})
		return nil
	})
}

func (n *nexus) Reserve(_ context.Context, kind uint8) error {
	return n.do(func() error {
		if n.u.key(n) == 0 || n.u.holder != nil && n.u.holder != n {
			return conflict()
		}
		n.u.holder, n.u.kind = n, kind
		return nil
	})
}

func (n *nexus) PreemptAbort(_ context.Context, kind uint8, victim uint64) error {
	return n.do(func() error {
		u := n.u
		has := func(r registration) bool { return r.key == victim && r.n != n }
		if u.key(n) == 0 || !slices.ContainsFunc(u.regs, has) {
			return conflict()
		}
		if u.holder != nil && u.key(u.holder) == victim {
			u.holder, u.kind = n, kind
		}
		u.regs = slices.DeleteFunc(u.regs, has)
		return nil
	})
}

func (n *nexus) ReadKeys(context.Context) (keys []uint64, err error) {
	got := make(chan []uint64, 1)
	err = n.do(func() error {
		var keys []uint64
		for _, r := range n.u.regs {
			keys = append(keys, r.key)
		}
		got <- keys
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

func (n *nexus) ReadReservation(context.Context) (initiator.Reservation, error) {
	got := make(chan initiator.Reservation, 1)
	err := n.do(func() error {
		var r initiator.Reservation
		if n.u.holder != nil {
			r = initiator.Reservation{Kind: n.u.kind, Key: n.u.key(n.u.holder)}
		}
		got <- r
		return nil
	})
	if err != nil {
		return initiator.Reservation{}, err
	}
	return <-got, nil
}

func (n *nexus) State() initiator.State {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	return initiator.State{Paths: []initiator.Path{{Group: 1, Up: true}}, Waiting: n.w.away}
}

func (n *nexus) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}
