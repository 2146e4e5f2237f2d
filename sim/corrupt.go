package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/drive/drivetest"
	"steadfast/san/store/storetest"
)

// errRefused ends a history whose pool says that it is damaged and cannot be
// opened. That is an answer; what it must not do is open and be wrong.
var errRefused = errors.New("the pool refuses to open, for it is damaged")

// corrupt runs a history of damage. Operations build up a state; then blocks
// are flipped, hidden, lost or misdirected; and the pool is opened again and
// read. What reads must be right, what is bad must be found by a scrub, and
// writing over it must mend it.
func (h *history) corrupt(n int) error {
	h.killOnly = true
	h.profile.volumeMax = min(h.profile.volumeMax, 16<<20) // where the map is bad, every block is asked for
	h.profile.without("evacuate", "space", "add drive", "scrub")
	for round := 0; round < 4 && (n == 0 || h.step < n); round++ {
		err := h.operations(h.rand.IntN(200), n)
		if err == nil {
			err = h.damageAndJudge(n)
		}
		if errors.Is(err, errRefused) {
			h.counts.found++
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// operations does some operations of the everyday kind.
func (h *history) operations(some, n int) error {
	for range some {
		if h.step++; n > 0 && h.step > n {
			return nil
		}
		if err := h.operation(); err != nil {
			return err
		}
		if err := h.afterwards(); err != nil {
			return err
		}
		if h.halted {
			break
		}
	}
	return nil
}

// damageAndJudge injects damage of one kind, restarts the pool and judges it.
func (h *history) damageAndJudge(n int) error {
	if h.rand.IntN(2) == 0 {
		if err := h.damageAtWork(n); err != nil {
			return err
		}
	} else if err := h.damageAtRest(); err != nil {
		return err
	}
	if err := h.reopenDamaged(); err != nil {
		return err
	}
	bad, err := h.readDamaged()
	if err != nil {
		return err
	}
	if err := h.scrubDamaged(bad); err != nil {
		return err
	}
	return h.mend(bad)
}

// damageAtWork lets a write go wrong while operations go on, and then lets the
// pool come to rest: an idle log is sealed, so that a lost end is seen.
func (h *history) damageAtWork(n int) error {
	d := h.disks[h.rand.IntN(len(h.disks))]
	kind, name := drivetest.LoseWrite, "loses"
	if h.rand.IntN(2) == 0 {
		kind, name = drivetest.MisdirectWrite, "misdirects"
	}
	after := 1 + h.rand.IntN(30)
	h.note("%s %s a write after %d", d.Name(), name, after)
	d.Plan(kind, after)
	h.lenient = true
	weights := h.profile.weights
	h.profile.without("die") // the end of a log that is not sealed can be lost unseen
	if err := h.operations(h.rand.IntN(80), n); err != nil {
		return err
	}
	h.profile.weights = weights
	err := h.rest()
	h.note("%d faults did not come", d.Planned())
	return h.unlessDamaged(err)
}

// rest drains the pool and gives it the time to notice that it is idle, and to
// seal its log.
func (h *history) rest() error {
	for range 3 {
		if _, err := h.drain(); err != nil {
			return err
		}
	}
	return nil
}

// damageAtRest brings the pool to rest, or closes it, and damages blocks.
func (h *history) damageAtRest() error {
	if err := h.rest(); err != nil {
		return h.unlessDamaged(err)
	}
	blocks := 1
	if h.rand.IntN(2) == 0 {
		if err := h.closePool(); err != nil {
			return h.unlessDamaged(err)
		}
		h.pool = nil
		blocks = 1 + h.rand.IntN(20)
	}
	h.lenient = true
	for range blocks {
		d := h.disks[h.rand.IntN(len(h.disks))]
		written := d.Written()
		if len(written) == 0 {
			continue
		}
		b := written[h.rand.IntN(len(written))]
		h.damages++
		if h.rand.IntN(3) == 0 {
			h.note("%s cannot read block %d", d.Name(), b)
			d.MakeUnreadable(b)
		} else {
			h.note("%s flips a bit of block %d", d.Name(), b)
			d.FlipBit(b, h.rand.IntN(block.BlockSize*8))
		}
	}
	return nil
}

// unlessDamaged forgives errors that damage explains.
func (h *history) unlessDamaged(err error) error {
	forgiven := fault.Is(err, fault.Corrupt) || (h.killOnly || h.surviving) && fault.Is(err, fault.Failed)
	if h.lenient && forgiven {
		h.note("%v", err)
		return nil
	}
	return err
}

// reopenDamaged kills the pool, if it was not closed, and opens it.
func (h *history) reopenDamaged() error {
	clear(h.devices)
	h.world.Kill(h.rand)
	return h.unlessRefused(h.open())
}

// unlessRefused turns a refusal to open that damage explains into errRefused.
// A drive that has lost both superblocks is missing.
func (h *history) unlessRefused(err error) error {
	if h.lenient && (fault.Is(err, fault.Corrupt) || fault.Is(err, fault.Invalid) && h.damages > 1) {
		h.note("%v", errRefused)
		return errRefused
	}
	return err
}

// spot is a block of a volume or snapshot.
type spot struct {
	volume, snapshot string
	block            int64
}

// readDamaged reads everything, which must be right where it can be read, and
// lists what cannot.
func (h *history) readDamaged() ([]spot, error) {
	got, err := h.read()
	if err != nil {
		return nil, h.unlessDamaged(err)
	}
	// With an unanswered operation this settles what became of it.
	if err := h.model.Recover(got.State, false); err != nil {
		return nil, err
	}
	var bad []spot
	for _, name := range got.Names() {
		v := got.Volumes[name]
		for _, b := range slices.Sorted(maps.Keys(v.Bad)) {
			bad = append(bad, spot{name, "", b})
		}
		for _, s := range v.Snapshots {
			for _, b := range slices.Sorted(maps.Keys(s.Bad)) {
				bad = append(bad, spot{name, s.Name, b})
			}
		}
	}
	h.note("%d blocks cannot be read", len(bad))
	if len(bad) > 0 {
		h.counts.found++
	}
	return bad, nil
}

// scrubDamaged runs a scrub, which must name the bad blocks and no others.
func (h *history) scrubDamaged(bad []spot) error {
	if err := h.pool.StartScrub(); err != nil {
		return h.unlessDamaged(err)
	}
	if _, err := h.drain(); err != nil {
		return h.unlessDamaged(err)
	}
	st := h.pool.Scrub()
	h.note("scrub: %d of %d bytes, %d corrupt", st.Done, st.Total, len(st.Corrupt))
	if st.Running {
		return fmt.Errorf("the scrub goes on in a pool at rest: %+v", st)
	}
	said, inMap := map[int64]bool{}, false
	for _, c := range st.Corrupt {
		said[c.Offset/block.BlockSize] = true
		inMap = inMap || c.Volume == ""
	}
	known := map[int64]bool{}
	for _, s := range bad {
		known[s.block] = true
		// A block that was copied by reference is named by one of its places.
		if !said[s.block] && !inMap && (len(st.Corrupt) == 0 || !h.copied(s)) {
			return fmt.Errorf("the scrub did not find %+v, of which reads say that it is bad", s)
		}
	}
	if h.pool.Status().Reclaimable > 0 {
		return nil // damage to the map keeps a job from its end, and what it is to take is verified still
	}
	for _, c := range st.Corrupt {
		v := h.model.Now().Volumes[c.Volume]
		if v != nil && !known[c.Offset/block.BlockSize] {
			return fmt.Errorf("the scrub calls %+v bad, which can be read", c)
		}
	}
	return nil
}

// copied tells whether a block was ever copied by reference.
func (h *history) copied(s spot) bool {
	v := h.model.Now().Volumes[s.volume]
	c := v.Content
	if snap := v.Snapshot(s.snapshot); snap != nil {
		c = snap.Content
	}
	return h.model.Now().Copied[c[s.block].Stored]
}

// mend writes over bad blocks of volumes. A part of one must be refused; a
// whole one must read well afterwards; and all else must be as it was.
func (h *history) mend(bad []spot) error {
	mended := map[spot]bool{}
	refused := 0 // each one costs a reading of the whole pool: under a damaged node there are many
	for _, s := range bad {
		v := h.model.Now().Volumes[s.volume]
		if s.snapshot != "" || v.ReadOnly || len(mended) > 30 || refused > 3 {
			continue
		}
		dev, err := h.device(s.volume)
		if err != nil {
			return h.unlessDamaged(err)
		}
		off := s.block * block.BlockSize
		err = dev.WriteAt(storetest.Bytes(h.stamps(block.SectorSize)), off+block.SectorSize, 0)
		if !fault.Is(err, fault.Corrupt) && !fault.Is(err, fault.Failed) {
			return fmt.Errorf("a write of a part of %+v, which is bad: %w", s, err)
		}
		stamps := h.stamps(block.BlockSize)
		op := storetest.Write{Volume: s.volume, Offset: off, Stamps: stamps, Verb: "mend"}
		err = dev.WriteAt(storetest.Bytes(stamps), off, block.FUA)
		if err == nil {
			mended[s] = true
		} else {
			refused++
		}
		if err := h.settle(op, true, err); err != nil {
			return err
		}
	}
	still, err := h.readDamaged()
	if err != nil {
		return err
	}
	for _, s := range still {
		if mended[s] {
			return fmt.Errorf("%+v was written over whole and is still bad", s)
		}
	}
	return nil
}
