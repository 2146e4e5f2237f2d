package mirrorio

import (
	"encoding/binary"
	"log/slog"
	"math"
	"slices"
	"sync"

	"steadfast/fault"
	"steadfast/san/mirror"
)

// KeptState is what snapshots are called that keep the state from before a resync
// of this node. They are its own: a resync neither makes nor deletes them.
const KeptState = "before-resync"

// Snapshot is a snapshot of one of the group's volumes. Volume, name and moment are
// the same on both nodes, and say which it is.
type Snapshot struct {
	Volume uint32
	Name   string
	// Moment is when it was taken: nanoseconds since the Unix epoch, by the owner's
	// clock. No other has it but those of other volumes that the same action took.
	Moment mirror.Moment
	Size   int64 // bytes: the volume's then
	// Optional: who has it may keep it, and who lacks it may do without, for it
	// cannot be read whole.
	Optional bool
}

// is tells whether s and o are the same snapshot.
func (s *Snapshot) is(o *Snapshot) bool {
	return s.Volume == o.Volume && s.Name == o.Name && s.Moment == o.Moment
}

// Within tells whether a snapshot is in a list.
func (s *Snapshot) Within(list []Snapshot) bool {
	return slices.ContainsFunc(list, func(o Snapshot) bool { return s.is(&o) })
}

// Snapshots is what a resync needs of a Store that has snapshots, to make those that
// this node lacks. Those that are named KeptState are left out of everything.
type Snapshots interface {
	// Snapshots lists them, oldest first.
	Snapshots() ([]Snapshot, error)
	// Steps lists the snapshots that a node lacks which has some, oldest first, each
	// with what changed since the one before, or for the first as Changed has it; and
	// what changed since the last.
	Steps(since mirror.Position, whole []uint32, has []Snapshot) (steps []mirror.Step, now []mirror.Range, err error)
	// Pin keeps the snapshots of a moment from being deleted, until Unpin, and
	// returns the volumes that have one.
	Pin(at mirror.Moment) (volumes []uint32)
	Unpin()
	// ReadPinned reads from the pinned snapshot of a volume; past its end there is
	// nothing but zeros.
	ReadPinned(volume uint32, p []byte, off int64) error
	// Take takes snapshots of what the volumes are now, and says of them what the list
	// says. One that is there is left; another by its name is deleted.
	Take(list []Snapshot) error
	// Prune deletes what is not in the list.
	Prune(list []Snapshot) error
}

// Losses is a Store that wants to know which of its snapshots a resync could not make
// at the other node, since it cannot read them whole: once for each resync that ends
// without them. It must not wait.
type Losses interface{ Unreadable(s Snapshot) }

// pinning orders what the core asked for: an Open that comes after its Shut does
// nothing.
type pinning struct {
	mu     sync.Mutex
	number uint64 // of the Open that is pinned
	shut   uint64
}

// open pins a moment for the core.
func (g *Group) open(e mirror.Open) {
	in := mirror.Opened{Number: e.Number}
	g.pins.mu.Lock()
	if g.snapshots != nil && e.Number > g.pins.shut {
		g.pins.number = e.Number
		in.Volumes = g.snapshots.Pin(e.Moment)
	}
	g.pins.mu.Unlock()
	g.put(in)
}

// unpin ends that.
func (g *Group) unpin(e mirror.Shut) {
	g.pins.mu.Lock()
	defer g.pins.mu.Unlock()
	g.pins.shut = max(g.pins.shut, e.Number)
	if g.snapshots != nil && g.pins.number <= e.Number {
		g.snapshots.Unpin()
	}
}

// changes answers what the core asks of the store's history.
func (g *Group) changes(l mirror.List) (c mirror.Changes, err error) {
	c.Number = l.Number
	if l.Steps && g.snapshots != nil {
		var has []Snapshot
		if theirs, ok := l.Has.(*Change); ok {
			has = theirs.snapshots
		}
		if c.Steps, c.Ranges, err = g.snapshots.Steps(l.Since, l.Whole, has); err != nil {
			return c, err
		}
		for i := range c.Steps {
			c.Steps[i].Ranges = thin(c.Steps[i].Ranges, max(stepRangesLeast, rangesMost/(1+len(c.Steps))))
		}
	} else if c.Ranges, err = g.opt.Store.Changed(l.Since, l.Whole); err != nil {
		return c, err
	}
	c.Ranges = thin(c.Ranges, rangesMost)
	list, err := g.listed(nil)
	c.Snapshots = list
	return c, err
}

// stepRangesLeast is how many ranges a step may have, however many steps there are.
const stepRangesLeast = 1024

// listed makes the list of this node's snapshots; lost are moments whose snapshots
// the other node need not have.
func (g *Group) listed(lost []mirror.Moment) (*Change, error) {
	var list []Snapshot
	var err error
	if g.snapshots != nil {
		list, err = g.snapshots.Snapshots()
	}
	for i := range list {
		list[i].Optional = slices.Contains(lost, list[i].Moment)
	}
	return listOf(list), err
}

// loadList makes the list that an operation of a resync carries.
func (g *Group) loadList(op *mirror.Op) mirror.Applied {
	lost, _ := op.Payload.([]mirror.Moment)
	list, err := g.listed(lost)
	if op.Moment != 0 {
		list = listOf(slices.DeleteFunc(list.snapshots, func(s Snapshot) bool { return s.Moment != op.Moment }))
	}
	for _, s := range list.snapshots {
		if !s.Optional {
			continue
		}
		if l, ok := g.opt.Store.(Losses); ok {
			l.Unreadable(s)
		} else {
			g.opt.Log.Warn("a snapshot cannot be read whole, and so the other node has none", slog.String("group", g.opt.Mirror.Agent.Group), slog.Int("volume", int(s.Volume)), slog.String("snapshot", s.Name))
		}
	}
	return mirror.Applied{Payload: list, Failed: g.failed("list snapshots", err)}
}

// followList does, as a resync's target, what a list of snapshots asks for.
func (g *Group) followList(op *mirror.Op, c *Change) mirror.Applied {
	err := g.follow(op, c.snapshots)
	if refusal(err) {
		g.opt.Log.Warn("a resync cannot make the snapshots the same", slog.String("group", g.opt.Mirror.Agent.Group), slog.Any("error", err))
		return mirror.Applied{Full: true, Payload: refusalOf(err)}
	}
	if err == nil && op.Ends() {
		err = g.opt.Store.Flush()
	}
	return mirror.Applied{Position: g.opt.Store.Position(), Failed: g.failed("follow the owner's snapshots", err)}
}

func (g *Group) follow(op *mirror.Op, list []Snapshot) error {
	if g.snapshots == nil {
		return nil
	}
	if op.Prunes() {
		if err := g.snapshots.Prune(list); refusal(err) { // someone uses one: the next resync will
			g.opt.Log.Warn("a snapshot that the owner does not have stays", slog.String("group", g.opt.Mirror.Agent.Group), slog.Any("error", err))
		} else if err != nil {
			return err
		}
		if !op.Ends() {
			return nil
		}
	}
	wanted, err := g.present(list)
	if err != nil {
		return err
	}
	if !op.Prunes() {
		return g.snapshots.Take(wanted)
	}
	have, err := g.snapshots.Snapshots()
	if err != nil {
		return err
	}
	for _, s := range wanted {
		if !s.Optional && !s.Within(have) {
			return fault.New(fault.Stale, "snapshot %q of volume %d is lacking still", s.Name, s.Volume)
		}
	}
	return nil
}

// present leaves out snapshots of volumes that were removed here, and waits for
// those that are not there yet. Fails with fault.Busy when one does not come.
func (g *Group) present(list []Snapshot) (out []Snapshot, err error) {
	for _, s := range list {
		switch g.await(s.Volume, s.Size) {
		case Ready:
			out = append(out, s)
		case NotYet:
			return nil, fault.New(fault.Busy, "volume %d is not on this node yet, nor its snapshot %q", s.Volume, s.Name)
		case Gone:
		}
	}
	return out, nil
}

// A list of snapshots on the wire: how many (uint32), and of each its volume
// (uint32), flags (uint8: 1 optional), the length of its name (uint8), its moment
// and size (uint64 each), and its name. Little-endian.
const (
	snapshotHeader = 22
	flagOptional   = 1
)

// listOf makes the form in which a list goes to the other node.
func listOf(list []Snapshot) *Change {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(list)))
	for i := range list {
		s := &list[i]
		b = le.AppendUint32(b, s.Volume)
		flags := byte(0)
		if s.Optional {
			flags = flagOptional
		}
		b = append(b, flags, byte(len(s.Name)))
		b = le.AppendUint64(b, uint64(s.Moment))
		b = le.AppendUint64(b, uint64(s.Size))
		b = append(b, s.Name...)
	}
	return &Change{Kind: List, Length: int64(len(b)), Data: b, snapshots: list}
}

// decodeList reads that.
func decodeList(b []byte) (list []Snapshot, err error) {
	bad := fault.New(fault.Invalid, "a list of snapshots that makes no sense")
	le := binary.LittleEndian
	if len(b) < 4 {
		return nil, bad
	}
	n := le.Uint32(b)
	for b = b[4:]; n > 0; n-- {
		if len(b) < snapshotHeader || len(b) < snapshotHeader+int(b[5]) || b[4] > flagOptional {
			return nil, bad
		}
		s := Snapshot{Volume: le.Uint32(b), Optional: b[4] != 0, Moment: mirror.Moment(le.Uint64(b[6:]))}
		size := le.Uint64(b[14:])
		end := snapshotHeader + int(b[5])
		s.Size, s.Name = int64(size), string(b[snapshotHeader:end])
		if size > math.MaxInt64 || s.Name == "" {
			return nil, bad
		}
		list, b = append(list, s), b[end:]
	}
	if len(b) > 0 {
		return nil, bad
	}
	return list, nil
}
