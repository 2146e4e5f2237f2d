package sim

import (
	"fmt"
	"strings"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store"
	"steadfast/san/store/storetest"
)

// attributeKeys are the attributes that histories use.
var attributeKeys = []string{"reservations", "a"}

// cellsMax bounds the blocks that all contents of the model hold together: it
// is what comparing costs.
const cellsMax = 30_000

// crowded tells whether another copy of everything is too much.
func (h *history) crowded(more int) bool {
	cells := more
	for _, v := range h.model.Now().Volumes {
		cells += len(v.Content)
		for _, s := range v.Snapshots {
			cells += len(s.Content)
		}
	}
	return cells > cellsMax
}

// size draws the size of a volume.
func (h *history) size() int64 {
	most := h.profile.volumeMax
	if most > 96<<20 && h.rand.IntN(3) > 0 {
		most = 4 << 20
	}
	return store.VolumeSizeMin + h.rand.Int64N((most-store.VolumeSizeMin)/block.BlockSize+1)*block.BlockSize
}

func (h *history) createVolume() error {
	if len(h.model.Now().Volumes) >= h.profile.volumes {
		return nil
	}
	spec := store.VolumeSpec{Name: h.name("v"), Size: h.size(), WriteCache: h.rand.IntN(2) == 0, ReadOnly: h.rand.IntN(12) == 0}
	st, err := h.pool.CreateVolume(spec)
	if err == nil {
		_, again := h.pool.CreateVolume(spec)
		if err := h.mustBe(fault.Exists, again); err != nil {
			return err
		}
	}
	return h.settle(storetest.CreateVolume{Spec: spec, ID: st.ID}, true, err)
}

func (h *history) changeVolume() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	var c store.VolumeChange
	flip := func(b bool) *bool { b = !b; return &b }
	switch h.rand.IntN(5) {
	case 0:
		size := t.Size + h.rand.Int64N(256)*block.BlockSize
		size = min(size, store.VolumeSizeMax)
		c.Size = &size
	case 1:
		name := h.name("v")
		c.Name = &name
	case 2:
		c.ReadOnly = flip(t.ReadOnly)
	case 3:
		on := !t.WriteCache
		err := t.dev.SetWriteCache(on)
		if err == nil && !on {
			h.model.Durable()
		}
		return h.settle(storetest.ChangeVolume{Volume: t.Name, Change: store.VolumeChange{WriteCache: &on}}, true, err)
	default:
		c.WriteCache = flip(t.WriteCache)
	}
	old := t.Name
	_, err = h.pool.ChangeVolume(old, c)
	if err := h.settle(storetest.ChangeVolume{Volume: old, Change: c}, true, err); err != nil {
		return err
	}
	if err == nil && c.Name != nil {
		h.devices[*c.Name] = h.devices[old]
		delete(h.devices, old)
	}
	return nil
}

func (h *history) deleteVolume() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	with := h.rand.IntN(3) > 0
	busy := len(t.Snapshots) > 0 && !with
	for _, s := range t.Snapshots {
		busy = busy || len(h.model.Now().Clones(s.Key)) > 0
	}
	if h.rand.IntN(8) == 0 {
		busy = true // while it is open
	} else if err := h.closeDevice(t.Name); err != nil {
		return h.pass(err)
	}
	err = h.pool.DeleteVolume(t.Name, with)
	if busy {
		h.note("delete %s, which is in use: %v", t.Name, short(err))
		return h.mustBe(fault.Busy, err)
	}
	return h.settle(storetest.DeleteVolume{Volume: t.Name}, true, err)
}

func (h *history) createSnapshot() error {
	t, ok, err := h.anyVolume()
	if !ok || len(t.Snapshots) >= 8 || h.crowded(len(t.Content)) {
		return err
	}
	name := h.name("s")
	_, err = h.pool.CreateSnapshot(t.Name, name)
	return h.settle(storetest.CreateSnapshot{Volume: t.Name, Name: name}, true, err)
}

// anySnapshot draws a snapshot.
func (h *history) anySnapshot() (v *storetest.Volume, s *storetest.Snapshot) {
	names := h.model.Now().Names()
	for range 4 {
		if len(names) == 0 {
			break
		}
		v := h.model.Now().Volumes[names[h.rand.IntN(len(names))]]
		if len(v.Snapshots) > 0 {
			return v, v.Snapshots[h.rand.IntN(len(v.Snapshots))]
		}
	}
	return nil, nil
}

func (h *history) deleteSnapshot() error {
	v, s := h.anySnapshot()
	if s == nil {
		return nil
	}
	err := h.pool.DeleteSnapshot(v.Name, s.Name)
	if clones := h.model.Now().Clones(s.Key); len(clones) > 0 {
		h.note("delete %s@%s, on which %v stand: %v", v.Name, s.Name, clones, short(err))
		return h.mustBe(fault.Busy, err)
	}
	return h.settle(storetest.DeleteSnapshot{Volume: v.Name, Name: s.Name}, true, err)
}

func (h *history) rollback() error {
	v, s := h.anySnapshot()
	if s == nil || v.ReadOnly {
		return nil
	}
	err := h.pool.Rollback(v.Name, s.Name)
	return h.settle(storetest.Rollback{Volume: v.Name, Name: s.Name}, true, err)
}

func (h *history) clone() error {
	v, s := h.anySnapshot()
	if s == nil || len(h.model.Now().Volumes) >= h.profile.volumes || h.crowded(len(s.Content)) {
		return nil
	}
	name := h.name("c")
	st, err := h.pool.Clone(v.Name, s.Name, name)
	return h.settle(storetest.Clone{Volume: v.Name, Snapshot: s.Name, Name: name, ID: st.ID}, true, err)
}

func (h *history) setAttribute() error {
	t, ok, err := h.anyVolume()
	if !ok {
		return err
	}
	key := attributeKeys[h.rand.IntN(len(attributeKeys))]
	value := ""
	if h.rand.IntN(5) > 0 {
		value = strings.Repeat(h.name("x"), 1+h.rand.IntN(40))
	}
	if h.rand.IntN(10) == 0 {
		value = strings.Repeat("k", 64<<10)
	}
	var p []byte // nil deletes
	if value != "" {
		p = []byte(value)
	}
	err = t.dev.SetAttribute(key, p)
	return h.settle(storetest.SetAttribute{Volume: t.Name, Key: key, Value: value}, true, err)
}

func (h *history) setThresholds() error {
	var percent []int
	for at := 1 + h.rand.IntN(60); at < 100 && h.rand.IntN(3) > 0; at += 1 + h.rand.IntN(30) {
		percent = append(percent, at)
	}
	err := h.pool.SetThresholds(percent)
	return h.settle(storetest.SetThresholds{Percent: percent}, true, err)
}

// changed asks what changed between two snapshots, or since or until an end.
func (h *history) changed() error {
	v, s := h.anySnapshot()
	if s == nil || h.lenient { // of bad blocks the model does not know what they hold
		return nil
	}
	from, to := s.Name, ""
	switch other := v.Snapshots[h.rand.IntN(len(v.Snapshots))]; h.rand.IntN(4) {
	case 0:
		from, to = "", s.Name
	case 1:
		from = ""
	case 2:
		if other.Key > s.Key {
			to = other.Name
		}
	}
	if err := h.model.Now().Changed(h.pool, v.Name, from, to); err != nil {
		return h.pass(fmt.Errorf("changes of %s from %q to %q: %w", v.Name, from, to, err))
	}
	return nil
}

// evacuateOrRemove goes on with an evacuation or begins one.
func (h *history) evacuateOrRemove() error {
	if h.rand.IntN(2) == 0 {
		return h.removeEvacuated()
	}
	return h.evacuate()
}
