package sim

import (
	"fmt"
	"slices"

	"steadfast/fault"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store"
)

// recoverPool begins the next life after the world has ended, as often as it
// ends in recovery again, and holds what is there against the model.
func (h *history) recoverPool() error {
	lost := false
	for {
		h.counts.crashes++
		clear(h.devices)
		if !h.killOnly && h.rand.IntN(2) == 0 {
			lost = true
			h.note("the power is lost")
			h.world.PowerLoss(h.rand)
		} else {
			h.note("the process is killed")
			h.world.Kill(h.rand)
		}
		if h.profile.crashes && h.rand.IntN(4) == 0 {
			h.world.EndAfter(1 + h.rand.IntN(15))
		}
		err := h.open()
		if h.world.Ended() {
			continue
		}
		if err := h.unlessRefused(err); err != nil {
			return fmt.Errorf("open after a crash: %w", err)
		}
		break
	}
	got, err := h.read()
	if h.world.Ended() {
		return h.recoverPool()
	}
	if err != nil {
		return fmt.Errorf("read after a crash: %w", err)
	}
	if err := h.model.Recover(got.State, lost); err != nil {
		return err
	}
	return h.askSince()
}

// open opens the pool on the disks of this life.
func (h *history) open() error {
	pool, err := h.system.Open(h.options(), h.drives())
	h.note("open: %v", short(err))
	if err != nil {
		return err
	}
	h.pool = pool
	// A disk whose joining or leaving the end interrupted may be either.
	member := func(d *drivetest.Disk) bool {
		return slices.ContainsFunc(pool.Status().Drives, func(s store.DriveStatus) bool { return s.Name == d.Name() })
	}
	h.disks = slices.DeleteFunc(h.disks, func(d *drivetest.Disk) bool { return !member(d) })
	return nil
}

// closePool closes all volumes and the pool. What was answered is durable then.
func (h *history) closePool() error {
	for name := range h.devices {
		if err := h.closeDevice(name); err != nil && !h.world.Ended() {
			return fmt.Errorf("close volume %s: %w", name, err)
		}
	}
	err := h.pool.Close()
	h.note("close: %v", short(err))
	if err == nil {
		h.model.Durable()
	}
	return err
}

// reopen closes the pool in order and opens it again.
func (h *history) reopen() error {
	err := h.closePool()
	switch {
	case h.world.Ended():
		return nil
	case err != nil && (fault.Is(err, fault.Full) && h.bounded() || h.unlessDamaged(err) == nil):
		return h.die() // no checkpoint; the log has it all
	case err != nil:
		return fmt.Errorf("close: %w", err)
	}
	if err := h.unlessRefused(h.open()); err != nil {
		return h.pass(fmt.Errorf("open: %w", err))
	}
	return h.compare()
}

// die ends the world between two operations.
func (h *history) die() error {
	h.note("dies")
	return h.recoverPool()
}

// fullDisk makes a filesystem below small, or lifts that again.
func (h *history) fullDisk() error {
	d := h.disks[h.rand.IntN(len(h.disks))]
	if d.Bounded() {
		h.note("space for %s", d.Name())
		d.SetSpace(-1)
		_, err := h.drain() // whereupon the pool must notice
		return err
	}
	h.note("no more space for %s", d.Name())
	d.SetSpace(d.Space() + h.rand.Int64N(4<<20))
	return nil
}

// scrub reads everything; with no damage injected it must find none.
func (h *history) scrub() error {
	err := h.pool.StartScrub()
	if err != nil && !fault.Is(err, fault.Busy) { // one goes on that found no rest
		return h.pass(err)
	}
	quiet, err := h.drain()
	if err != nil || !quiet {
		return err
	}
	st := h.pool.Scrub()
	h.note("scrub: %d of %d bytes, %d corrupt", st.Done, st.Total, len(st.Corrupt))
	if st.Running || st.Done < st.Total || len(st.Corrupt) > 0 && !h.lenient {
		return fmt.Errorf("scrub of a sound pool ended with %+v", st)
	}
	return nil
}

// pass returns err unless the world has ended, or damage explains it.
func (h *history) pass(err error) error {
	if h.world.Ended() {
		return nil
	}
	return h.unlessDamaged(err)
}

// addDrive joins a new disk.
func (h *history) addDrive() error {
	if len(h.disks) >= 4 {
		return nil
	}
	d := h.newDisk()
	err := h.pool.AddDrive(store.NamedDrive{Name: d.Name(), Drive: d.Open()})
	h.note("add drive %v: %v", d, short(err))
	if err != nil && !h.world.Ended() {
		h.disks = h.disks[:len(h.disks)-1]
		if fault.Is(err, fault.Full) && h.bounded() {
			return nil
		}
	}
	return h.pass(err)
}

// evacuate empties a disk and takes it out.
func (h *history) evacuate() error {
	if len(h.disks) < 2 {
		return nil
	}
	d := h.disks[h.rand.IntN(len(h.disks))]
	st := h.pool.Status()
	var rest, size int64
	for _, s := range st.Drives {
		if size += s.Size; s.Name != d.Name() && s.State == "online" {
			rest += s.Size
		}
	}
	err := h.pool.EvacuateDrive(d.Name())
	h.note("evacuate %s: %v", d.Name(), short(err))
	if fault.Is(err, fault.Full) && (h.bounded() || st.Used*10 >= rest*5) {
		return nil
	}
	if err != nil {
		return h.pass(err)
	}
	if h.rand.IntN(2) == 0 {
		return nil // it goes on beside what comes next
	}
	return h.takeOut(d)
}

// takeOut drains the pool and removes a disk that is evacuating.
func (h *history) takeOut(d *drivetest.Disk) error {
	quiet, err := h.drain()
	if err != nil || !quiet {
		return err
	}
	err = h.pool.RemoveDrive(d.Name())
	h.note("remove drive %s: %v", d.Name(), short(err))
	switch {
	case err == nil:
		h.disks = slices.DeleteFunc(h.disks, func(o *drivetest.Disk) bool { return o == d })
	case (fault.Is(err, fault.Busy) || fault.Is(err, fault.Full)) && h.nearlyFull():
		return nil // the rest had no room after all
	}
	return h.pass(err)
}

// nearlyFull tells whether the pool may be too full to move things about.
func (h *history) nearlyFull() bool {
	st := h.pool.Status()
	return h.bounded() || st.Used*100 > st.Capacity*70
}

// removeEvacuated takes out a disk whose evacuation was begun before.
func (h *history) removeEvacuated() error {
	for _, s := range h.pool.Status().Drives {
		if s.State != "evacuating" {
			continue
		}
		for _, d := range h.disks {
			if d.Name() == s.Name {
				return h.takeOut(d)
			}
		}
	}
	return nil
}
