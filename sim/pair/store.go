package pair

import (
	"maps"
	"slices"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/san/mirror"
)

// A toy's content, and what is stable of it. What a store promises is all here: a loss of
// power takes back any number of the newest versions of each block that no flush had
// covered, and the kept position with them.

// value is what a block holds: 0 at first, then what some write put there.
type value uint64

// version is a block's content and where the store entered it.
type version struct {
	value    value
	position mirror.Position
}

// toy is a node's disk: blocks, each with what is stable and what came since.
// It outlives the node's lives.
type toy struct {
	world   *world
	owner   quorum.Member
	blocks  map[uint64][]version // the first is stable, the last is what is read
	last    mirror.Position
	saved   []mirror.Position // the first is stable
	snaps   map[value]map[uint64]value
	origins map[value]origin
	pinned  value           // what a resync copies from
	bad     map[uint64]bool // blocks that cannot be read
	kept    bool            // the state before a resync that has not ended

	room     int           // blocks more that it has room for; negative: any number
	slow     time.Duration // added to each access, by a fault
	failNext bool          // the next write fails
}

func newToy(w *world, of quorum.Member) *toy {
	return &toy{world: w, owner: of, room: -1, bad: map[uint64]bool{}, blocks: map[uint64][]version{}, saved: []mirror.Position{0}, snaps: map[value]map[uint64]value{}}
}

func (s *toy) read(block uint64) version {
	if v := s.blocks[block]; len(v) > 0 {
		return v[len(v)-1]
	}
	return version{}
}

// fits takes room for a write, if there is enough. What is overwritten needs none.
func (s *toy) fits(block, count uint64) bool {
	fresh := 0
	for i := range count {
		if len(s.blocks[block+i]) == 0 {
			fresh++
		}
	}
	if s.room >= 0 && fresh > s.room {
		return false
	}
	if s.room >= 0 {
		s.room -= fresh
	}
	return true
}

// write enters content; durable ones are stable at once, with all before them.
func (s *toy) write(block, count uint64, content []value, durable bool) mirror.Position {
	s.last++
	for i := range count {
		b := block + i
		delete(s.bad, b)
		if len(s.blocks[b]) == 0 {
			s.blocks[b] = []version{{}}
		}
		s.blocks[b] = append(s.blocks[b], version{content[i], s.last})
	}
	if durable {
		s.flush()
	}
	return s.last
}

// snapshot keeps what all blocks are now, and makes it stable. A second one by
// the same name is the first.
func (s *toy) snapshot(name value) mirror.Position {
	s.last++
	s.flush()
	if s.snaps[name] == nil {
		s.snaps[name] = map[uint64]value{}
		for b := range s.blocks {
			s.snaps[name][b] = s.read(b).value
		}
		s.noteOrigin(name)
	}
	return s.last
}

// forget takes a snapshot back, if it is there.
func (s *toy) forget(name value) mirror.Position {
	s.last++
	s.flush()
	delete(s.snaps, name)
	return s.last
}

// damaged returns the blocks that cannot be read, from the first to the last.
func (s *toy) damaged(block, count uint64) (r mirror.Range) {
	for b := block; b < block+count; b++ {
		if !s.bad[b] {
			continue
		}
		if r.Count == 0 {
			r.Block = b
		}
		r.Count = b + 1 - r.Block
	}
	return r
}

// flush makes everything stable.
func (s *toy) flush() {
	for b, v := range s.blocks {
		s.blocks[b] = v[len(v)-1:]
	}
	s.saved = s.saved[len(s.saved)-1:]
}

// powerLoss takes back some of what was not stable: each block keeps any of its
// versions. Positions are not used again.
func (s *toy) powerLoss() {
	for _, b := range slices.Sorted(maps.Keys(s.blocks)) {
		v := s.blocks[b]
		keep := s.world.rand.IntN(len(v))
		s.blocks[b] = v[keep : keep+1]
	}
	keep := s.world.rand.IntN(len(s.saved))
	s.saved = s.saved[keep : keep+1]
	s.last += 1000
}

// changed lists what was entered since a position, or all that is there. A store
// of which nothing is known says so.
func (s *toy) changed(since mirror.Position, whole bool) (out []mirror.Range) {
	if since == 0 {
		out, whole = append(out, mirror.Range{}), true
	}
	for _, b := range slices.Sorted(maps.Keys(s.blocks)) {
		if whole || s.read(b).position > since {
			out = append(out, mirror.Range{Block: b, Count: 1})
		}
	}
	return out
}

// delay is how long an access takes.
func (s *toy) delay(flush bool) time.Duration {
	d := s.world.between(30*time.Microsecond, 300*time.Microsecond)
	if flush {
		d += s.world.between(0, time.Millisecond)
	}
	if s.slow > 0 {
		d += s.world.between(0, s.slow)
	}
	return d
}
