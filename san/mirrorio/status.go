package mirrorio

import (
	"sync"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/mirror"
)

// Status is what a group is at on this node, for people and metrics.
type Status struct {
	Standing group.Standing
	// Peer is the other node's incarnation, when it is connected.
	Peer *quorum.Incarnation
	// Phase is how far the peer is; of the owner.
	Phase mirror.Phase
	// LeftBytes are to be copied by the resync from here; StuckBytes of them wait
	// because they cannot be read on this node. Rate is in bytes a second, over the
	// last seconds; Left how long the rest takes at that, 0 when that is not known.
	LeftBytes, StuckBytes int64
	Rate                  int64
	Left                  time.Duration
	// Copies may be under way at once; less than one is with pauses. Slowdown is
	// what clients' operations take, in percent of what they take without the
	// resync, or 0 when that is not known.
	Copies   float64
	Slowdown int
	// Receiving: this node is being resynced.
	Receiving bool
	// OutOfSyncBytes is what the peer lacks, as far as is known here; 0 when it is
	// an entry of the set. It may be a few seconds old.
	OutOfSyncBytes int64
	// Operations are under way; Waiting those that wait for this node to serve.
	Operations, Waiting int
	// Broken: this node's store has failed, and it takes no part any more.
	Broken bool
	// Counted since Start.
	Takeovers                             uint64 // times that this node became the owner
	CopiedBytes, HealedBytes, UnreadBytes uint64
}

// asked is an input: who asks for the status.
type asked struct{ answer chan mirror.Status }

// Status returns what the group is at. It must not be called from Options.Stood,
// Healed or ResyncEnded.
func (g *Group) Status() Status {
	q := asked{make(chan mirror.Status, 1)}
	var m mirror.Status
	if g.put(q) {
		select {
		case m = <-q.answer:
		case <-g.ended:
		}
	}
	s := Status{
		Standing: m.Standing, Peer: m.Peer, Phase: m.Phase, LeftBytes: int64(m.Left) * BlockSize, StuckBytes: int64(m.Stuck) * BlockSize,
		Copies: m.Copies, Slowdown: m.Slowdown, Receiving: m.Receiving, Operations: m.Operations, Waiting: m.Waiting, Broken: m.Broken,
		Takeovers: m.Takeovers, CopiedBytes: m.Copied * BlockSize, HealedBytes: m.Healed * BlockSize, UnreadBytes: m.Unhealed * BlockSize,
	}
	if m.Phase == mirror.Copying {
		if s.Rate = g.rate.now(); s.Rate > 0 {
			s.Left = time.Duration(float64(s.LeftBytes) / float64(s.Rate) * float64(time.Second))
		}
	}
	switch {
	case m.Standing.Role != group.Owner || len(m.Standing.Others) > 0:
	case m.Phase == mirror.None || m.Phase == mirror.Asking:
		s.OutOfSyncBytes = max(s.LeftBytes, g.differ.since(g, m.Position))
	default:
		s.OutOfSyncBytes = s.LeftBytes
	}
	return s
}

// rate measures how fast a resync copies.
type rate struct {
	mu     sync.Mutex
	points [rateSeconds]point // a ring
	last   int
}

// point is how many blocks were copied at a time.
type point struct {
	at     time.Duration
	blocks uint64
}

// rateSeconds is the time that a rate is of.
const rateSeconds = 5

// look notes how many blocks have been copied, once a second.
func (r *rate) look(now time.Duration, blocks uint64) {
	if now < r.points[r.last].at+time.Second {
		return // only the driver writes
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = (r.last + 1) % rateSeconds
	r.points[r.last] = point{now, blocks}
}

// now returns bytes a second.
func (r *rate) now() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	newest, oldest := r.points[r.last], r.points[(r.last+1)%rateSeconds]
	if newest.at <= oldest.at {
		return 0
	}
	return int64(float64(newest.blocks-oldest.blocks) * BlockSize / (newest.at - oldest.at).Seconds())
}

// differ keeps what the peer lacks while it is away: the store is asked for it now
// and then only.
type differ struct {
	mu    sync.Mutex
	at    time.Time
	bytes int64
}

// differEvery is how old the answer may be.
const differEvery = 5 * time.Second

func (d *differ) since(g *Group, p mirror.Position) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.at) < differEvery {
		return d.bytes
	}
	g.direct.RLock()
	defer g.direct.RUnlock()
	select {
	case <-g.ended:
		return 0
	default:
	}
	ranges, err := g.opt.Store.Changed(p, nil)
	if err != nil {
		return d.bytes // the core will come across it
	}
	d.at, d.bytes = time.Now(), 0
	for _, r := range ranges {
		d.bytes += int64(r.Count) * BlockSize
	}
	return d.bytes
}
