package node

import (
	"sync"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/node/control"
	"steadfast/node/ha"
	"steadfast/san/lun"
	"steadfast/san/store"
	"steadfast/scsi"
)

// units joins the device server to the store: it makes logical units of
// volumes and keeps the node's totals.
type units struct {
	*lun.Server

	mu      sync.Mutex
	present map[string]store.ID // units, by identifier in hex
	retired lun.Counters        // of units that are gone
}

// newUnits returns a device server without units, for these portals. All of
// them are one active target port group: a single node has one way to its
// drives, and each portal is a port of its own. SPC-4, 5.15.2.
func newUnits(portals []config.Portal) *units {
	u := &units{Server: lun.NewServer(), present: map[string]store.ID{}}
	group := scsi.PortGroup{ID: 1, State: scsi.ActiveOptimized}
	for _, p := range portals {
		group.Ports = append(group.Ports, p.Group)
	}
	u.SetPortGroups([]scsi.PortGroup{group})
	return u
}

// add makes an open volume of a pool a logical unit.
func (u *units) add(p *store.Pool, v *store.Volume) error {
	if err := u.AddVolume(unitVolume{v, p}); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.present[hexID(v.ID())] = v.ID()
	return nil
}

// remove takes a logical unit away; it returns when no task of it is left.
func (u *units) remove(id string) error {
	u.mu.Lock()
	key, ok := u.present[id]
	if c, err := u.Counters(key); ok && err == nil {
		u.retired = sum(u.retired, c)
	}
	delete(u.present, id)
	u.mu.Unlock()
	// After Close there are no units, and nothing is left to remove.
	if err := u.RemoveVolume(key); ok && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// setView says what each initiator sees through a target.
func (u *units) setView(target string, view map[string][]control.Mapping) error {
	out := make(map[string][]lun.Mapping, len(view))
	for initiator, list := range view {
		for _, m := range list {
			id, err := parseID(m.Volume)
			if err != nil {
				return err
			}
			out[initiator] = append(out[initiator], lun.Mapping{LUN: m.LUN, Volume: id, ReadOnly: m.ReadOnly})
		}
	}
	return u.SetView(target, out)
}

// counters returns what was done on a unit.
func (u *units) counters(id store.ID) (lun.Counters, bool) {
	c, err := u.Counters(id)
	return c, err == nil
}

// total sums the counters of all units there are and were.
func (u *units) total() lun.Counters {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.retired
	for _, id := range u.present {
		if c, err := u.Counters(id); err == nil {
			t = sum(t, c)
		}
	}
	return t
}

func sum(a, b lun.Counters) lun.Counters {
	a.Reads += b.Reads
	a.Writes += b.Writes
	a.ReadBytes += b.ReadBytes
	a.WrittenBytes += b.WrittenBytes
	a.ReadNanos += b.ReadNanos
	a.WriteNanos += b.WriteNanos
	a.Errors += b.Errors
	return a
}

// unitVolume is a store's volume as the device server wants it.
type unitVolume struct {
	*store.Volume
	pool *store.Pool
}

var (
	_ lun.Volume        = unitVolume{}
	_ lun.SpaceReporter = unitVolume{}
)

// ID implements lun.Volume.
func (v unitVolume) ID() [16]byte { return v.Volume.ID() }

// CopyFrom implements lun.Volume: by reference where the store can.
func (v unitVolume) CopyFrom(dst int64, from lun.Volume, src, n int64, flags block.Flags) error {
	if other, ok := from.(unitVolume); ok {
		return v.Volume.CopyFrom(dst, other.Volume, src, n, flags)
	}
	return ha.CopyBytes(v, dst, from, src, n, flags)
}

// Watch implements lun.Volume.
func (v unitVolume) Watch(fn func(lun.Event)) (stop func()) {
	return v.Volume.Watch(func(e store.VolumeEvent) {
		switch e {
		case store.VolumeResized:
			fn(lun.Resized)
		case store.VolumeThreshold:
			fn(lun.Threshold)
		case store.VolumeChanged:
			fn(lun.Changed)
		case store.VolumeReplaced:
			fn(lun.Replaced)
		}
	})
}

// Space implements lun.SpaceReporter.
func (v unitVolume) Space() (available, used int64) {
	st := v.pool.Status()
	if own, err := v.pool.Volume(v.Name()); err == nil {
		used = own.Referenced
	}
	return max(0, st.Capacity-st.Used), used
}
