package mirrorio

import (
	"errors"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
	"steadfast/san/store"
)

// PoolStore is a Store: volumes of a pool, by the numbers that both nodes know
// them by. What is not in it is not the group's.
type PoolStore struct {
	pool    *store.Pool
	names   map[uint32]string
	volumes map[uint32]*store.Volume
}

// OpenStore opens volumes of a pool as a group's, and returns the position that
// was kept with them. Close closes them.
func OpenStore(pool *store.Pool, names map[uint32]string) (s *PoolStore, kept mirror.Position, err error) {
	s = &PoolStore{pool: pool, names: names, volumes: map[uint32]*store.Volume{}}
	first := true
	for n, name := range names {
		v, err := pool.OpenVolume(name)
		if err != nil {
			return nil, 0, errors.Join(err, s.Close())
		}
		s.volumes[n] = v
		// One that has no base was never the same on both.
		base, _ := pool.Base(name)
		if first || mirror.Position(base) < kept {
			kept, first = mirror.Position(base), false
		}
	}
	return s, kept, nil
}

// Close closes the volumes.
func (s *PoolStore) Close() error {
	var errs []error
	for _, v := range s.volumes {
		errs = append(errs, v.Close())
	}
	return errors.Join(errs...)
}

func (s *PoolStore) volume(n uint32) (*store.Volume, error) {
	if v := s.volumes[n]; v != nil {
		return v, nil
	}
	return nil, fault.New(fault.NotFound, "the group has no volume %d on this node", n)
}

// Apply implements Store.
func (s *PoolStore) Apply(volume uint32, c *Change, durable bool) error {
	v, err := s.volume(volume)
	if err != nil {
		return err
	}
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
	}
	return fault.New(fault.Invalid, "a change of kind %d", c.Kind)
}

// Read implements Store.
func (s *PoolStore) Read(volume uint32, p []byte, off int64) error {
	v, err := s.volume(volume)
	if err != nil {
		return err
	}
	if bufpool.IsAligned(p) {
		return v.ReadAt(p, off)
	}
	buf := bufpool.Get(len(p))
	defer bufpool.Put(buf)
	err = v.ReadAt(buf, off)
	copy(p, buf)
	return err
}

// Flush implements Store. One flush is the pool's, whatever the volume.
func (s *PoolStore) Flush() error {
	for _, v := range s.volumes {
		return v.Flush()
	}
	return nil
}

// Position implements Store.
func (s *PoolStore) Position() mirror.Position { return mirror.Position(s.pool.Position()) }

// Changed implements Store. A volume of which the pool cannot say what was
// changed has changed everywhere.
func (s *PoolStore) Changed(since mirror.Position) (out []mirror.Range, err error) {
	for n, v := range s.volumes {
		err := s.pool.ChangedSince(s.names[n], store.LSN(since), func(r store.Range) bool {
			first, end := r.Offset/BlockSize, (r.Offset+r.Length+BlockSize-1)/BlockSize
			out = append(out, mirror.Range{Volume: n, Block: uint64(first), Count: uint64(end - first)})
			return true
		})
		if fault.Is(err, fault.Stale) {
			out = append(out, mirror.Range{Volume: n, Count: uint64(v.Size() / BlockSize)})
			err = nil
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// SavePosition implements Store.
func (s *PoolStore) SavePosition(p mirror.Position) error {
	for _, name := range s.names {
		if err := s.pool.SetBase(name, store.LSN(p)); err != nil {
			return err
		}
	}
	return nil
}
