package mirrorio

import (
	"bytes"
	"log/slog"
	"slices"
	"time"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/mirror"
)

// awaitMax is how long what the peer sends waits for its volume to be here: both
// nodes follow what the cluster wants of them, and this one may be behind.
const awaitMax = 10 * time.Second

// apply makes a change. r is of a client's operation, and else nil.
func (g *Group) apply(e mirror.Apply, r *request) mirror.Applied {
	c := e.Op.Payload.(*Change)
	switch {
	case e.Op.Lists():
		return g.followList(&e.Op, c)
	case c.Kind == Act:
		return g.act(&e.Op, c)
	}
	defer c.release()
	if r == nil {
		switch g.await(e.Op.Volume, c.Off+c.Length) {
		case Gone:
			return mirror.Applied{Position: g.opt.Store.Position()}
		case NotYet:
			g.opt.Log.Error("a change waited for its volume in vain", slog.String("group", g.opt.Mirror.Agent.Group), slog.Int("volume", int(e.Op.Volume)))
		case Ready:
		}
	}
	var err error
	if e.Op.Copies() {
		err = g.applyCopy(e.Op.Volume, c, e.Op.Durable)
	} else {
		err = g.opt.Store.Apply(e.Op.Volume, c, e.Op.Durable)
	}
	switch {
	case fault.Is(err, fault.Full):
		return mirror.Applied{Full: true}
	case fault.Is(err, fault.Corrupt):
		return mirror.Applied{Bad: g.locate(&e.Op)}
	}
	return mirror.Applied{Position: g.opt.Store.Position(), Failed: g.failed("apply a change", err)}
}

// await waits until a change can be made, for a time.
func (g *Group) await(volume uint32, end int64) Readiness {
	ready, changed := g.opt.Store.Ready(volume, end)
	if ready != NotYet {
		return ready
	}
	patience := time.NewTimer(awaitMax)
	defer patience.Stop()
	for ready == NotYet {
		select {
		case <-changed:
			ready, changed = g.opt.Store.Ready(volume, end)
		case <-patience.C:
			return NotYet
		case <-g.ended:
			return NotYet
		}
	}
	return ready
}

var zeros [BlockSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// applyCopy stores what the other node has. What is zeros takes no room.
func (g *Group) applyCopy(volume uint32, c *Change, durable bool) error {
	if c.Kind != Data {
		return g.opt.Store.Apply(volume, c, durable)
	}
	for at := 0; at < len(c.Data); {
		end, hole := at, isZero(c.Data[at:min(at+BlockSize, len(c.Data))])
		for end < len(c.Data) && isZero(c.Data[end:min(end+BlockSize, len(c.Data))]) == hole {
			end = min(end+BlockSize, len(c.Data))
		}
		part := &Change{Kind: Data, Off: c.Off + int64(at), Length: int64(end - at), Data: c.Data[at:end]}
		if hole {
			part.Kind, part.Data = Zero, nil
		}
		if err := g.opt.Store.Apply(volume, part, durable); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// load reads for a client, into its buffer, or for the other node. What a client
// cannot read is its error, unless it is this node that has failed.
func (g *Group) load(e mirror.Load, r *request) mirror.Applied {
	if e.Op.Lists() {
		return g.loadList(&e.Op)
	}
	if r == nil || e.Op.Kind != mirror.Read && e.Op.Kind != mirror.Compare {
		return g.loadBlocks(&e.Op)
	}
	err := g.opt.Store.Read(e.Op.Volume, r.read, r.off)
	var bad mirror.Range
	if fault.Is(err, fault.Corrupt) {
		bad = g.locate(&e.Op)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r.err = err
	r.mismatch = firstDifference(r.read, r.expected)
	// What cannot be read is not what is expected.
	a := mirror.Applied{Differs: r.expected != nil && (err != nil || r.mismatch >= 0), Bad: bad}
	if err != nil && bad.Count == 0 && !refusal(err) {
		a.Failed = g.failed("read", err)
	}
	return a
}

// loadBlocks reads whole blocks for the other node.
func (g *Group) loadBlocks(op *mirror.Op) mirror.Applied {
	c := newChange(int(op.Count) * BlockSize)
	c.Kind, c.Off = Data, int64(op.Block)*BlockSize
	err := g.read(op, c.Data, c.Off)
	switch {
	case err == nil:
	case fault.Is(err, fault.Corrupt):
		c.release()
		return mirror.Applied{Bad: g.locate(op)}
	case fault.Is(err, fault.NotFound): // it was removed meanwhile
		clear(c.Data)
		err = nil
	}
	if err == nil && allZero(c.Data) {
		c.release()
		c.Kind = Zero
	}
	return mirror.Applied{Payload: c, Failed: g.failed("read for the other node", err)}
}

func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), BlockSize)
		if !isZero(p[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// read reads for an operation: of its moment's snapshot, if it has one.
func (g *Group) read(op *mirror.Op, p []byte, off int64) error {
	if op.Moment != 0 && g.snapshots != nil {
		return g.snapshots.ReadPinned(op.Volume, p, off)
	}
	return g.opt.Store.Read(op.Volume, p, off)
}

// locate finds the blocks of an operation that cannot be read: those from the
// first to the last.
func (g *Group) locate(op *mirror.Op) mirror.Range {
	p := bufpool.Get(BlockSize)
	defer bufpool.Put(p)
	bad := mirror.Range{Volume: op.Volume}
	for b := op.Block; b < op.Block+op.Count; b++ {
		if !fault.Is(g.read(op, p, int64(b)*BlockSize), fault.Corrupt) {
			continue
		}
		if bad.Count == 0 {
			bad.Block = b
		}
		bad.Count = b + 1 - bad.Block
	}
	if bad.Count == 0 { // it can be by now
		bad.Block, bad.Count = op.Block, op.Count
	}
	return bad
}

// healed tells what became of blocks that could not be read.
func (g *Group) healed(e mirror.Healed) {
	var err error
	if !e.OK {
		err = errDamaged
	}
	g.opt.Log.Warn("blocks of this node could not be read", slog.String("group", g.opt.Mirror.Agent.Group), slog.Int("volume", int(e.What.Volume)),
		slog.Uint64("block", e.What.Block), slog.Uint64("count", e.What.Count), slog.Bool("healed", e.OK))
	if g.opt.Healed != nil {
		g.opt.Healed(e.What.Volume, int64(e.What.Block)*BlockSize, int64(e.What.Count)*BlockSize, err)
	}
}

// Heal has n bytes of a volume of this node read, and what cannot be read for its
// checksum replaced by what the other node has. It does not wait: Options.Healed
// is told, when there was something to heal and it was the owner, or the owner has
// answered. A scrubber calls it with what it found.
func (g *Group) Heal(volume uint32, off, n int64) {
	for n > 0 {
		part := min(n, pieceMax-off%BlockSize)
		first, end := off/BlockSize, (off+part+BlockSize-1)/BlockSize
		g.put(mirror.Heal{What: mirror.Range{Volume: volume, Block: uint64(first), Count: uint64(end - first)}})
		off, n = off+part, n-part
	}
}

// prepare keeps what this node's volumes are before a resync.
func (g *Group) prepare(number uint64) {
	var err error
	if g.opt.ResyncBegins != nil {
		err = g.opt.ResyncBegins()
	}
	if err != nil {
		g.opt.Log.Error("the state before a resync cannot be kept; it waits", slog.String("group", g.opt.Mirror.Agent.Group), slog.Any("error", err))
	}
	g.put(mirror.Prepared{Number: number, Failed: err != nil})
}

// list answers what this node's store has changed.
func (g *Group) list(l mirror.List) {
	for range listTries {
		c, err := g.changes(l)
		if !g.failed("list changes", err) {
			g.put(c)
			return
		}
		// A resync waits for this. What the store cannot read now, a repair or the
		// next role may mend.
		select {
		case <-g.ended:
			return
		case <-time.After(listPause):
		}
	}
}

// listPause is how long a list that failed waits before it is tried again, and
// listTries how often: then a new connection has to ask anew.
const (
	listPause = 5 * time.Second
	listTries = 60
)

// rangesMost is how many ranges the other node is told: some are joined by others.
const rangesMost = mirror.RangesMax / 4

// thin joins ranges that lie near each other until there are at most so many.
func thin(list []mirror.Range, most int) []mirror.Range {
	if len(list) <= most {
		return list
	}
	slices.SortFunc(list, func(a, b mirror.Range) int {
		switch {
		case a.Volume != b.Volume:
			return int(a.Volume) - int(b.Volume)
		case a.Block < b.Block:
			return -1
		case a.Block > b.Block:
			return 1
		}
		return 0
	})
	for gap := uint64(1); len(list) > most; gap *= 2 {
		out := list[:0]
		for _, r := range list {
			last := len(out) - 1
			if last >= 0 && r.Count > 0 && out[last].Count > 0 && out[last].Volume == r.Volume && r.Block <= out[last].Block+out[last].Count+gap {
				out[last].Count = max(out[last].Count, r.Block+r.Count-out[last].Block)
				continue
			}
			out = append(out, r)
		}
		list = out
	}
	return list
}

// firstDifference returns where got is not what is expected, or -1.
func firstDifference(got, expected []byte) int64 {
	for i := range expected {
		if got[i] != expected[i] {
			return int64(i)
		}
	}
	return -1
}
