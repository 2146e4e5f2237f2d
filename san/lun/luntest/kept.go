package luntest

import (
	"bytes"
	"sync"

	"steadfast/san/lun"
)

// Kept is a volume in memory that keeps its unit's state as well, as a mirrored
// one does. Its Gate and Fail are called with "save" and "load" too.
type Kept struct {
	*RAM

	mu      sync.Mutex
	state   []byte
	saves   int
	durable bool
}

var _ lun.StateKeeper = (*Kept)(nil)

// NewKept is NewRAM for such a volume.
func NewKept(name string, id byte, size int64) *Kept { return &Kept{RAM: NewRAM(name, id, size)} }

// hooks runs the test's; a read-only volume keeps its state as well.
func (k *Kept) hooks(op string) error {
	if k.Gate != nil {
		k.Gate(op, 0, 0)
	}
	if k.Fail != nil {
		return k.Fail(op, 0, 0)
	}
	return nil
}

// SaveState implements lun.StateKeeper.
func (k *Kept) SaveState(state []byte, durable bool) error {
	if err := k.hooks("save"); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state, k.durable = bytes.Clone(state), durable
	k.saves++
	return nil
}

// LoadState implements lun.StateKeeper.
func (k *Kept) LoadState() ([]byte, error) {
	if err := k.hooks("load"); err != nil {
		return nil, err
	}
	return k.State(), nil
}

// State returns what was saved last.
func (k *Kept) State() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return bytes.Clone(k.state)
}

// Saves returns how often the state was saved, and whether the last time was to
// be durable.
func (k *Kept) Saves() (n int, durable bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.saves, k.durable
}
