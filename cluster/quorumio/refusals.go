package quorumio

import (
	"log/slog"
	"net"
	"sync"
	"time"
)

// Of what is told of connections that are refused.
const (
	// refusalEvery is how often one from the same place, for the same reason, is told.
	refusalEvery = time.Minute
	// refusalsMax bounds how many places and reasons are told apart; what is beyond is as one
	// place.
	refusalsMax = 256
)

// refusals tells of connections that are refused: of a stranger who knocks many times a second the
// first time at once, and then once a minute how often it was.
type refusals struct {
	log *slog.Logger

	mu   sync.Mutex
	told map[refusal]*toldOf
}

// refusal is what is told apart.
type refusal struct{ what, from, why string }

// toldOf is when that was told last, and how often it has happened since.
type toldOf struct {
	at    time.Time
	since int
}

// tell tells of one, if it is time to. why may be nil.
func (r *refusals) tell(now time.Time, what string, from net.Addr, why error) {
	key := refusal{what: what, from: from.String()}
	if host, _, err := net.SplitHostPort(key.from); err == nil {
		key.from = host // each connection has another port
	}
	if why != nil {
		key.why = why.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.told[key]
	if last == nil {
		last = r.enter(now, &key)
	}
	if last.since++; !last.at.IsZero() && now.Sub(last.at) < refusalEvery {
		return
	}
	args := []any{"what", key.what, "from", key.from}
	if key.why != "" {
		args = append(args, "err", key.why)
	}
	if last.since > 1 {
		args = append(args, "times", last.since)
	}
	r.log.Warn("a connection was refused", args...)
	last.at, last.since = now, 0
}

// enter makes a place for what was not told yet. Those that are quiet for long are forgotten; while
// there are too many all the same, the key becomes that of the rest.
func (r *refusals) enter(now time.Time, key *refusal) *toldOf {
	if len(r.told) >= refusalsMax {
		for k, old := range r.told {
			if now.Sub(old.at) >= refusalEvery {
				delete(r.told, k)
			}
		}
	}
	if len(r.told) >= refusalsMax {
		*key = refusal{what: "several", from: "many addresses"}
		if rest := r.told[*key]; rest != nil {
			return rest
		}
	}
	if r.told == nil {
		r.told = map[refusal]*toldOf{}
	}
	last := &toldOf{}
	r.told[*key] = last
	return last
}
