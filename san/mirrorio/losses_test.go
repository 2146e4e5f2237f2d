package mirrorio

import (
	"log/slog"
	"slices"
	"testing"

	"steadfast/san/mirror"
)

// listing is a store that has snapshots, and wants to know of those that are left out.
type listing struct {
	*PoolStore
	list []Snapshot
	told []Snapshot
}

func (l *listing) Snapshots() ([]Snapshot, error) { return slices.Clone(l.list), nil }

func (l *listing) Unreadable(s Snapshot) { l.told = append(l.told, s) }

// TestUnreadable holds that the store is told of each snapshot that a resync ends
// without, and of no other.
func TestUnreadable(t *testing.T) {
	all := []Snapshot{{Volume: 1, Name: "one", Moment: 5}, {Volume: 1, Name: "two", Moment: 7}, {Volume: 2, Name: "two", Moment: 7}}
	s := &listing{list: all}
	g := &Group{opt: Options{Store: s, Log: slog.New(slog.DiscardHandler)}, snapshots: s}
	if a := g.loadList(&mirror.Op{}); a.Failed || len(s.told) > 0 {
		t.Errorf("nothing is left out: %+v; told of %v", a, s.told)
	}
	a := g.loadList(&mirror.Op{Payload: []mirror.Moment{7}})
	list, ok := a.Payload.(*Change)
	if a.Failed || !ok || len(list.snapshots) != 3 {
		t.Fatalf("%+v", a)
	}
	for i := range s.told {
		s.told[i].Optional = false
	}
	if !slices.Equal(s.told, all[1:]) {
		t.Errorf("told of %v", s.told)
	}
}
