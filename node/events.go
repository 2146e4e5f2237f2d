package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
)

// eventsKept is how many past events can be asked for.
const eventsKept = 1024

// Severities of events.
const (
	severityInfo    = "info"
	severityWarning = "warning"
	severityError   = "error"
)

// events is the node's event log: the last ones in memory, each also a line of
// the log, and a stream for whoever watches. A slow watcher misses events
// rather than holding anyone up: it sees the gap in their sequence numbers.
type events struct {
	log *slog.Logger

	mu   sync.Mutex
	ring []*steadfastv1.Event // oldest first, at most eventsKept
	last uint64
	// Counted since the start: by severity, and by kind and resource group.
	severities map[string]uint64
	kinds      map[kindOf]uint64
	grown      chan struct{} // closed and replaced with each event
}

// kindOf is a kind of event of a resource group, or of none.
type kindOf struct{ kind, group string }

func newEvents(log *slog.Logger) *events {
	return &events{log: log, severities: map[string]uint64{}, kinds: map[kindOf]uint64{}, grown: make(chan struct{})}
}

// countOf returns how many events of a severity there were.
func (ev *events) countOf(severity string) uint64 {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	return ev.severities[severity]
}

// count returns how many events of a kind there were of a resource group; empty:
// of those that are of none.
func (ev *events) count(kind, group string) uint64 {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	return ev.kinds[kindOf{kind, group}]
}

// publish adds e, and gives it its number and time. It does not block.
func (ev *events) publish(e *steadfastv1.Event) {
	e.Time = timestamppb.New(time.Now())
	ev.mu.Lock()
	ev.last++
	e.Sequence = ev.last
	ev.severities[e.Severity]++
	ev.kinds[kindOf{e.Kind, e.Group}]++
	if len(ev.ring) == eventsKept {
		ev.ring = slices.Delete(ev.ring, 0, eventsKept/4)
	}
	ev.ring = append(ev.ring, e)
	close(ev.grown)
	ev.grown = make(chan struct{})
	ev.mu.Unlock()

	level := slog.LevelInfo
	switch e.Severity {
	case severityWarning:
		level = slog.LevelWarn
	case severityError:
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.String("kind", e.Kind)}
	for _, a := range []slog.Attr{slog.String("group", e.Group), slog.String("pool", e.Pool), slog.String("volume", e.Volume), slog.String("drive", e.Drive), slog.String("machine", e.Machine)} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if e.OffsetBytes != 0 {
		attrs = append(attrs, slog.Int64("offset", e.OffsetBytes))
	}
	ev.log.LogAttrs(context.Background(), level, "event", append(attrs, slog.String("text", e.Text))...)
}

// after returns the events kept since a sequence number, and a channel that
// is closed when there is another one.
func (ev *events) after(sequence uint64) ([]*steadfastv1.Event, <-chan struct{}) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	i, _ := slices.BinarySearchFunc(ev.ring, sequence+1, func(e *steadfastv1.Event, s uint64) int {
		switch {
		case e.Sequence < s:
			return -1
		case e.Sequence > s:
			return 1
		}
		return 0
	})
	return slices.Clone(ev.ring[i:]), ev.grown
}
