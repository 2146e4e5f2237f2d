package mirrorio

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
	"steadfast/san/store"
)

// PoolStore is a Store: volumes of a pool, by the numbers that both nodes know
// them by. What is not in it is not the group's. Volumes come and go while it is
// used.
type PoolStore struct {
	pool *store.Pool

	mu      sync.RWMutex
	volumes map[uint32]*member
	removed map[uint32]bool
	changed chan struct{} // closed when a volume has come, gone or grown

	save sync.Mutex // one position after the other

	pins   sync.RWMutex // held for reading by who reads pinned
	pinned map[uint32]pin
}

// member is a volume of the group.
type member struct {
	v    *store.Volume
	stop func()       // of what watches it
	busy sync.RWMutex // held for reading by who uses v
}

// OpenStore opens volumes of a pool as a group's, and returns the position that
// was kept with them. Close closes them.
func OpenStore(pool *store.Pool, names map[uint32]string) (s *PoolStore, kept mirror.Position, err error) {
	s = &PoolStore{pool: pool, volumes: map[uint32]*member{}, removed: map[uint32]bool{}, pinned: map[uint32]pin{}, changed: make(chan struct{})}
	first := true
	for n, name := range names {
		if err := s.Add(n, name); err != nil {
			return nil, 0, errors.Join(err, s.Close())
		}
		// One that has no base was never the same on both: all of it will be listed,
		// whatever the position.
		if base, ok := pool.Base(name); ok && (first || mirror.Position(base) < kept) {
			kept, first = mirror.Position(base), false
		}
	}
	return s, kept, nil
}

// Add makes a volume of the pool one of the group's. It need not be there on the
// other node yet. What both have changed of it counts as different until a
// position is kept with it, which is soon after it is on both.
func (s *PoolStore) Add(number uint32, name string) error {
	v, err := s.pool.OpenVolume(name)
	if err != nil {
		return err
	}
	m := &member{v: v}
	m.stop = v.Watch(func(e store.VolumeEvent) {
		if e == store.VolumeResized {
			s.tell()
		}
	})
	s.mu.Lock()
	_, there := s.volumes[number]
	if !there {
		s.volumes[number] = m
		delete(s.removed, number)
	}
	s.mu.Unlock()
	if there {
		m.stop()
		return errors.Join(fault.New(fault.Exists, "the group has a volume %d on this node", number), v.Close())
	}
	s.tell()
	return nil
}

// Remove takes a volume out of the group and closes it, when nothing uses it any
// more. On the owner no client may. What the other node still sends for it is of no
// use, and dropped.
func (s *PoolStore) Remove(number uint32) error {
	s.mu.Lock()
	m := s.volumes[number]
	if m == nil {
		s.mu.Unlock()
		return fault.New(fault.NotFound, "the group has no volume %d on this node", number)
	}
	delete(s.volumes, number)
	s.removed[number] = true
	s.mu.Unlock()
	s.tell()
	s.unpin(func(n uint32) bool { return n == number })
	return m.close()
}

// tell wakes who waits for a volume.
func (s *PoolStore) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// close ends a member that nobody finds any more.
func (m *member) close() error {
	m.stop()
	m.busy.Lock()
	defer m.busy.Unlock()
	return m.v.Close()
}

// Close closes the volumes.
func (s *PoolStore) Close() error {
	s.mu.Lock()
	list := s.volumes
	s.volumes = map[uint32]*member{}
	s.mu.Unlock()
	s.Unpin()
	var errs []error
	for _, m := range list {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

// use returns a volume, which is not closed before done is called.
func (s *PoolStore) use(n uint32) (v *store.Volume, done func(), err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := s.volumes[n]
	if m == nil {
		return nil, nil, fault.New(fault.NotFound, "the group has no volume %d on this node", n)
	}
	m.busy.RLock()
	return m.v, m.busy.RUnlock, nil
}

// Ready implements Store.
func (s *PoolStore) Ready(volume uint32, end int64) (Readiness, <-chan struct{}) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch m := s.volumes[volume]; {
	case s.removed[volume]:
		return Gone, nil
	case m == nil || m.v.Size() < end:
		return NotYet, s.changed
	}
	return Ready, nil
}

// Apply implements Store.
func (s *PoolStore) Apply(volume uint32, c *Change, durable bool) error {
	v, done, err := s.use(volume)
	if err != nil {
		return err
	}
	defer done()
	var flags block.Flags
	if durable {
		flags = block.FUA
	}
	switch c.Kind {
	case Data:
		return v.WriteAt(c.Data, c.Off, flags)
	case Trim:
		err = v.Trim(c.Off, c.Length)
		if err == nil && durable {
			err = v.Flush()
		}
		return err
	case Zero:
		return v.Zero(c.Off, c.Length, flags)
	case Act, List: // are the node's
	}
	return fault.New(fault.Invalid, "a change of kind %d", c.Kind)
}

// Read implements Store.
func (s *PoolStore) Read(volume uint32, p []byte, off int64) error {
	v, done, err := s.use(volume)
	if err != nil {
		return err
	}
	defer done()
	if bufpool.IsAligned(p) {
		return v.ReadAt(p, off)
	}
	buf := bufpool.Get(len(p))
	defer bufpool.Put(buf)
	err = v.ReadAt(buf, off)
	copy(p, buf)
	return err
}

// TryRead implements Store.
func (s *PoolStore) TryRead(volume uint32, p []byte, off int64) bool {
	v, done, err := s.use(volume)
	if err != nil {
		return false
	}
	defer done()
	return v.TryReadAt(p, off)
}

// Flush implements Store. One flush is the pool's, whatever the volume.
func (s *PoolStore) Flush() error {
	for _, n := range s.numbers() {
		v, done, err := s.use(n)
		if err != nil {
			continue // it is gone
		}
		defer done()
		return v.Flush()
	}
	return nil
}

// numbers lists the volumes there are.
func (s *PoolStore) numbers() []uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.volumes))
}

// Position implements Store.
func (s *PoolStore) Position() mirror.Position { return mirror.Position(s.pool.Position()) }

// Changed implements Store. Up to its own base each volume is the same on both.
func (s *PoolStore) Changed(since mirror.Position, whole []uint32) (out []mirror.Range, err error) {
	for _, n := range s.numbers() {
		v, done, err := s.use(n)
		if err != nil {
			continue // it is gone
		}
		list, err := s.changedOf(v, n, store.LSN(since), slices.Contains(whole, n), nil)
		done()
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// SavePosition implements Store. It never goes back.
func (s *PoolStore) SavePosition(p mirror.Position) error {
	s.save.Lock()
	defer s.save.Unlock()
	for _, n := range s.numbers() {
		v, done, err := s.use(n)
		if err != nil {
			continue // it is gone
		}
		if base, ok := s.pool.Base(v.Name()); !ok || store.LSN(p) > base {
			err = s.pool.SetBase(v.Name(), store.LSN(p))
		}
		done()
		if err != nil {
			return err
		}
	}
	return nil
}
