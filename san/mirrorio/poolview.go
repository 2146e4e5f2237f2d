package mirrorio

import "steadfast/san/store"

// Volume returns this node's copy of a volume. It is closed when the volume is
// removed.
func (s *PoolStore) Volume(number uint32) (*store.Volume, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := s.volumes[number]
	if m == nil {
		return nil, false
	}
	return m.v, true
}

// Volumes lists the volumes there are: their names by number.
func (s *PoolStore) Volumes() map[uint32]string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[uint32]string, len(s.volumes))
	for number, m := range s.volumes {
		out[number] = m.v.Name()
	}
	return out
}
