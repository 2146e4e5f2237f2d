package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

const (
	// keptTime bounds how long other members are waited for that have events of before.
	keptTime = 2 * time.Second
	// lookEvery is how often it is looked whether members have come, gone, or fallen silent.
	lookEvery = 500 * time.Millisecond
)

// WatchSiteEvents implements the API's call.
//
// Each member is asked for its own events by who is asked for all, which merges them: those kept by
// their times, as far as members' clocks agree, and new ones as they come. Nothing of it is stored
// anywhere else. What a caller has seen it says as (member, life, sequence number), which is the
// same whichever member it asks, so that it misses and repeats nothing when it asks again.
func (s siteService) WatchSiteEvents(ctx context.Context, req *steadfastv1.WatchSiteEventsRequest, out *connect.ServerStream[steadfastv1.WatchSiteEventsResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &eventsMerger{n: s.n, seen: map[string]*steadfastv1.EventsSeen{}, away: map[string]bool{}, here: req.OnlyHere, items: make(chan *steadfastv1.WatchSiteEventsResponse)}
	for _, seen := range req.Seen {
		m.seen[seen.Member] = seen
	}
	// The caller knows that it is answered before there is an event.
	if err := out.Send(&steadfastv1.WatchSiteEventsResponse{}); err != nil {
		return err
	}
	for _, r := range m.kept(ctx) {
		if err := out.Send(r); err != nil {
			return err
		}
	}
	if req.KeptOnly {
		return nil
	}
	defer m.wait()
	defer cancel()
	m.reconcile(ctx)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.n.ctx.Done():
			return fault.New(fault.Canceled, "the node is stopping")
		case <-look.C:
			m.reconcile(ctx)
		case r := <-m.items:
			if err := out.Send(r); err != nil {
				return err
			}
		}
	}
}

// eventsMerger makes one stream of the members' events.
type eventsMerger struct {
	n     *Node
	here  bool
	items chan *steadfastv1.WatchSiteEventsResponse

	mu   sync.Mutex
	seen map[string]*steadfastv1.EventsSeen // by member
	away map[string]bool                    // it was told that their events are missing

	running map[string]context.CancelFunc // followed members
	all     sync.WaitGroup
}

// members are those whose events are to be had: all of the cluster, or this node, which has no
// name outside of one.
func (m *eventsMerger) members() (names []string, c *cluster) {
	c, err := m.n.inCluster()
	if err != nil {
		return []string{""}, nil
	}
	self := string(c.member.Self().Member)
	if m.here {
		return []string{self}, c
	}
	for _, r := range c.member.State().Roll.Sorted() {
		names = append(names, string(r.Name))
	}
	if !slices.Contains(names, self) { // it was removed, and tells of that
		names = append(names, self)
	}
	return names, c
}

// kept returns the events of before of all members that answer, in the order of their times, and
// who does not answer.
func (m *eventsMerger) kept(ctx context.Context) (all []*steadfastv1.WatchSiteEventsResponse) {
	ctx, cancel := context.WithTimeout(ctx, keptTime)
	defer cancel()
	names, c := m.members()
	lists := make([][]*steadfastv1.WatchSiteEventsResponse, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		asked.Go(func() {
			err := m.from(ctx, c, name, true, func(r *steadfastv1.WatchSiteEventsResponse) error {
				lists[i] = append(lists[i], r)
				return nil
			})
			if err != nil && m.tellAway(name, true) {
				lists[i] = append(lists[i], missing(name, err))
			}
		})
	}
	asked.Wait()
	// Each member's stay in their order, whatever its clock did.
	for {
		first := -1
		for i, list := range lists {
			if len(list) > 0 && (first < 0 || timeOf(list[0]).Before(timeOf(lists[first][0]))) {
				first = i
			}
		}
		if first < 0 {
			return all
		}
		all = append(all, lists[first][0])
		lists[first] = lists[first][1:]
	}
}

// timeOf is the time of an event; notices come last.
func timeOf(r *steadfastv1.WatchSiteEventsResponse) time.Time {
	if r.Event == nil {
		return time.Unix(1<<40, 0)
	}
	return r.Event.Time.AsTime()
}

func missing(member string, err error) *steadfastv1.WatchSiteEventsResponse {
	return &steadfastv1.WatchSiteEventsResponse{Notice: &steadfastv1.EventsNotice{Member: member, Problem: unanswered(err)}}
}

// isSelf tells whether a member's name is this node's; in no cluster it has none.
func (c *cluster) isSelf(name string) bool {
	if c == nil {
		return name == ""
	}
	return quorum.Member(name) == c.member.Self().Member
}

// tellAway takes in whether a member's events are missing, and tells whether that is news.
func (m *eventsMerger) tellAway(name string, away bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away[name] == away {
		return false
	}
	m.away[name] = away
	return true
}

// known is up to where a member's events were seen. This node's may have been seen under another
// name, or none, before it joined or left its cluster.
func (m *eventsMerger) known(c *cluster, name string) *steadfastv1.EventsSeen {
	m.mu.Lock()
	defer m.mu.Unlock()
	best := m.seen[name]
	if !c.isSelf(name) {
		return best
	}
	for _, seen := range m.seen {
		if seen.Life == m.n.life() && (best.GetLife() != seen.Life || best.GetSequence() < seen.Sequence) {
			best = seen
		}
	}
	return best
}

// from gives take the events of a member that were not seen yet, and knows them as seen then.
func (m *eventsMerger) from(ctx context.Context, c *cluster, name string, keptOnly bool, take func(*steadfastv1.WatchSiteEventsResponse) error) error {
	seen := m.known(c, name)
	req := &steadfastv1.WatchEventsRequest{After: seen.GetSequence(), Life: seen.GetLife(), KeptOnly: keptOnly}
	one := func(r *steadfastv1.WatchEventsResponse) error {
		if seen.GetLife() == r.Life && seen.GetSequence() >= r.Event.GetSequence() {
			return nil // an older program has no lives, and tells all again
		}
		e := proto.CloneOf(r.Event)
		e.Member = name
		seen = &steadfastv1.EventsSeen{Member: name, Life: r.Life, Sequence: e.GetSequence()}
		if err := take(&steadfastv1.WatchSiteEventsResponse{Event: e, Seen: seen}); err != nil {
			return err
		}
		m.mu.Lock()
		m.seen[name] = seen
		m.mu.Unlock()
		return nil
	}
	switch {
	case c.isSelf(name):
		return m.n.watchEvents(ctx, req, one)
	case c == nil || !c.hears(quorum.Member(name)): // nil: it has just left the cluster that name is of
		return errUnheard
	}
	stream, err := c.nodeAt(quorum.Member(name)).WatchEvents(ctx, req)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := one(stream.Msg()); err != nil {
			return err
		}
	}
	return stream.Err()
}

// reconcile follows the members that there are now.
func (m *eventsMerger) reconcile(ctx context.Context) {
	if m.running == nil {
		m.running = map[string]context.CancelFunc{}
	}
	names, _ := m.members()
	for name, stop := range m.running {
		if !slices.Contains(names, name) {
			stop()
			delete(m.running, name)
		}
	}
	for _, name := range names {
		if m.running[name] != nil {
			continue
		}
		mine, stop := context.WithCancel(ctx)
		m.running[name] = stop
		m.all.Go(func() { m.follow(mine, name) })
	}
}

// wait returns when nobody is followed any more; the context has ended.
func (m *eventsMerger) wait() { m.all.Wait() }

// follow gives a member's events for as long as ctx lasts, and tells when they do not come and when
// they come again.
func (m *eventsMerger) follow(ctx context.Context, name string) {
	put := func(r *steadfastv1.WatchSiteEventsResponse) error {
		select {
		case m.items <- r:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// What cannot be put is for a context that has ended, which the loop sees.
	for ctx.Err() == nil {
		_, c := m.members()
		if !c.isSelf(name) && (c == nil || !c.hears(quorum.Member(name))) {
			if name != "" && m.tellAway(name, true) {
				_ = put(missing(name, errUnheard))
			}
			sleep(ctx, lookEvery)
			continue
		}
		heard, stop := m.whileHeard(ctx, c, name)
		err := m.from(heard, c, name, false, func(r *steadfastv1.WatchSiteEventsResponse) error {
			if m.tellAway(name, false) {
				if err := put(&steadfastv1.WatchSiteEventsResponse{Notice: &steadfastv1.EventsNotice{Member: name}}); err != nil {
					return err
				}
			}
			return put(r)
		})
		stop()
		if ctx.Err() == nil && err != nil && m.tellAway(name, true) {
			_ = put(missing(name, err))
		}
		sleep(ctx, lookEvery)
	}
}

// errUnheard is why nothing comes from a member.
var errUnheard = fault.New(fault.Unreachable, "it is not heard of")

// whileHeard returns a context that ends when a member is not heard of any more: the connection
// to one that lost its power says nothing of that.
func (m *eventsMerger) whileHeard(ctx context.Context, c *cluster, name string) (context.Context, context.CancelFunc) {
	heard, cancel := context.WithCancel(ctx)
	if c == nil {
		return heard, cancel
	}
	m.all.Go(func() {
		for heard.Err() == nil {
			if now, err := m.n.inCluster(); err != nil || now != c || !c.isSelf(name) && !c.hears(quorum.Member(name)) {
				cancel()
			}
			sleep(heard, lookEvery)
		}
	})
	return heard, cancel
}

// sleep waits, at most until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
