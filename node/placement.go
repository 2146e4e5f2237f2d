package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
)

// Times of the placement of machines.
const (
	// placeEvery is how often is decided, while there are hosts.
	placeEvery = 500 * time.Millisecond
	// askTime bounds the question to the other storage nodes, which is part of the
	// time after which machines run again.
	askTime = 300 * time.Millisecond
	// placeTime bounds one change of the inventory. A decision that comes later is
	// made anew, from newer reports.
	placeTime = time.Second
	// deafAfter is what counts as a break in listening: the process did not run, or
	// knew no leader, which an election alone does not take as long as.
	deafAfter = 1500 * time.Millisecond
	// editBytesMax bounds the documents of one change: as one command the quorum
	// takes 1 MiB of them in base64. What is left the next round decides, at once.
	editBytesMax = 640 << 10
)

// placeMember is what placing machines needs of the quorum's member.
type placeMember interface {
	quorumio.Editor
	Self() quorum.Incarnation
	Leader() quorum.Member
	Reachable() map[quorum.Member]quorumio.Word
}

// placer decides on a storage node where machines run and which hosts are lost: it
// brings reports to cluster/placement, and what that decides into the inventory. All
// storage nodes do so at once: their edits name the revision that they were
// decided at, so one of them takes effect, and the others decide again and find
// nothing left to do.
//
// While there are no hosts it sleeps until the inventory changes.
type placer struct {
	member placeMember
	// ask asks another storage node what it has heard.
	ask     func(context.Context, quorum.Member) (placement.Heard, error)
	publish func(*steadfastv1.Event)
	log     *slog.Logger
	now     func() time.Time
	wakes   chan struct{} // has room for one

	mu       sync.Mutex // a leaf
	revision quorum.Revision
	view     *inventory.View // of that revision; nil: none was read yet
	unread   string          // what was said last of documents that cannot be read
	since    time.Time       // listens since then without a break; zero: not at all
	marked   time.Time       // when that was last looked at
	led      time.Time       // when a leader was last known
	waits    map[string]string
	first    map[string]uint32 // by host: the first life of it that was heard of
	evicted  map[string]uint32 // by host: the life that it was told of
	decided  map[string]uint64 // decisions that took effect, by their name
	trouble  string
}

func newPlacer(m placeMember, log *slog.Logger, publish func(*steadfastv1.Event)) *placer {
	return &placer{
		member: m, log: log, publish: publish, now: time.Now, wakes: make(chan struct{}, 1),
		waits: map[string]string{}, first: map[string]uint32{}, evicted: map[string]uint32{}, decided: map[string]uint64{},
	}
}

// wake has the placer look at the inventory. It does not block.
func (p *placer) wake() {
	select {
	case p.wakes <- struct{}{}:
	default: // it is awake already and will see the newest
	}
}

// run decides until ctx ends. A round may wait for other nodes; whether this
// process listens without a break is looked at beside it.
func (p *placer) run(ctx context.Context) {
	t := time.NewTicker(placeEvery)
	t.Stop()
	ended := make(chan struct{}, 1)
	var round sync.WaitGroup
	defer round.Wait()
	defer t.Stop()
	ticking, busy := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-p.wakes:
		case <-ended:
			busy = false
			continue
		}
		there := len(p.look(p.member.State().Inventory).Hosts) > 0
		switch {
		case there && !ticking:
			t.Reset(placeEvery)
		case !there && ticking:
			t.Stop()
			p.rest()
		}
		if ticking = there; !there {
			continue
		}
		p.mark()
		if busy {
			continue // what is new it sees, or the next one
		}
		busy = true
		round.Go(func() {
			p.round(ctx)
			ended <- struct{}{}
		})
	}
}

// look reads an inventory, once for each of its revisions. What a newer program
// wrote is left out, and what depends on it is left as it is.
func (p *placer) look(inv quorum.Inventory) *inventory.View {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view != nil && p.revision == inv.Revision {
		return p.view
	}
	v, err := inventory.Read(inv.Entries)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != p.unread && text != "" {
		p.log.Warn("machines and hosts of which this program cannot read everything stay as they are", "error", err)
	}
	p.view, p.revision, p.unread = v, inv.Revision, text
	return v
}

// rest forgets what was heard: the last host has gone.
func (p *placer) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = time.Time{}
	clear(p.waits)
	clear(p.evicted)
	clear(p.first)
}

// mark notes that the process runs, and whether it knows a leader. One that was
// stopped has heard nobody meanwhile, and neither has one that was cut off: it
// reaches the quorum before it has heard every host again. Both begin to
// listen anew, or they would declare hosts lost that were there all the time.
func (p *placer) mark() (listening time.Duration) {
	now, leader := p.now(), p.member.Leader()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.since.IsZero() {
		p.since, p.led, p.marked = now, now, now
	}
	if leader != "" {
		p.led = now
	}
	if now.Sub(p.marked) > deafAfter || now.Sub(p.led) > deafAfter {
		p.since = now
		clear(p.first)
	}
	p.marked = now
	return now.Sub(p.since)
}

// heard is what this node has heard of hosts. A host says something each second,
// on its connection between members.
func (p *placer) heard(state *quorum.State) placement.Heard {
	out := placement.Heard{Node: p.member.Self().Member, Listening: p.mark()}
	words := p.member.Reachable()
	v := p.look(state.Inventory)
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, life := range v.Lives {
		word, ok := words[quorum.Member(name)]
		if !ok || v.Hosts[name] == nil || memberOf(life.ID) < max(state.Boots[quorum.Member(name)], word.Boot) {
			continue // it was not heard, or its process is another one since
		}
		out.Hosts = append(out.Hosts, placement.Report{Host: name, Boot: life.Boot, Age: word.Age})
		if _, known := p.first[name]; !known && word.Age < out.Listening {
			p.first[name] = life.Boot
		}
	}
	out.First = maps.Clone(p.first)
	return out
}

// memberOf is the life of the quorum's member which a host's life is part of: its
// identifier begins with that number, "7" or "7.2". One that says nothing of it
// counts as the newest.
func memberOf(id string) quorum.Boot {
	text, _, _ := strings.Cut(id, ".")
	boot, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 1<<64 - 1
	}
	return quorum.Boot(boot)
}

// askOthers asks the other storage nodes that are heard of. Who does not answer in
// time is left out: what it heard is then not known to this node.
func (p *placer) askOthers(ctx context.Context, state *quorum.State) []placement.Heard {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	words := p.member.Reachable()
	var asked sync.WaitGroup
	var mu sync.Mutex
	var out []placement.Heard
	for _, r := range state.Roll.Sorted() {
		word, ok := words[r.Name]
		if r.Role != quorum.RoleNode || r.Name == p.member.Self().Member || !ok || word.Age >= heardLately {
			continue
		}
		asked.Go(func() {
			h, err := p.ask(ctx, r.Name)
			if err != nil {
				p.log.Debug("a node does not tell what it has heard of hosts", "node", r.Name, "error", err)
				return
			}
			h.Node = r.Name
			mu.Lock()
			defer mu.Unlock()
			out = append(out, h)
		})
	}
	asked.Wait()
	return out
}

// round decides once.
func (p *placer) round(ctx context.Context) {
	state := p.member.State()
	if p.member.Leader() == "" {
		return // nothing can be decided
	}
	reports := append(p.askOthers(ctx, state), p.heard(state))
	ctx, cancel := context.WithTimeout(ctx, placeTime)
	defer cancel()
	var before *inventory.View
	var done []placement.Decision
	err := quorumio.Update(ctx, p.member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
		now := p.now().UnixNano()
		before = p.look(inv)
		var edits []quorum.Edit
		var err error
		done, edits, err = fitting(before, placement.Decide(before, reports, now), now)
		return edits, err
	})
	p.hindered(ctx, err)
	if err == nil {
		p.tell(before, done)
	}
}

// fitting returns as many of the decisions as one change of the inventory can take,
// the first ones, and that change. Waits are no change, and all stay.
func fitting(v *inventory.View, all []placement.Decision, now int64) ([]placement.Decision, []quorum.Edit, error) {
	for n := len(all); ; n /= 2 {
		some := slices.Clone(all[:n])
		for _, d := range all[n:] {
			if _, waits := d.(placement.Wait); waits {
				some = append(some, d)
			}
		}
		edits, err := placement.Edits(v, some, now)
		bytes := 0
		for _, e := range edits {
			bytes += len(e.Key) + len(e.Value)
		}
		if err != nil || bytes <= editBytesMax || n <= 1 {
			return some, edits, err
		}
	}
}

// hindered tells what keeps decisions from being made, once.
func (p *placer) hindered(ctx context.Context, err error) {
	if ctx.Err() != nil || fault.Is(err, fault.Busy) || fault.Is(err, fault.Unreachable) || fault.Is(err, fault.Canceled) {
		return // another node decides, or the quorum does not answer, which others tell
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	p.mu.Lock()
	news := text != p.trouble && text != ""
	p.trouble = text
	p.mu.Unlock()
	if news {
		p.event(severityError, "placement-hindered", "where machines run cannot be decided: %s", text)
	}
}

// tell says what has been decided, and to whom that is new.
func (p *placer) tell(before *inventory.View, done []placement.Decision) {
	waits := map[string]string{}
	for _, d := range done {
		switch d := d.(type) {
		case placement.Lost:
			p.count("lost")
			p.event(severityError, "host-lost", "host %q was not heard of for %.1f s and counts as lost, in its life %d", d.Host, d.Silence.Seconds(), d.Boot)
		case placement.Evict:
			if p.newlyEvicted(d) {
				p.event(severityWarning, "host-returned", "host %q is heard of again, in its life %d, which was declared lost: it ends what it runs, and begins another life", d.Host, d.Boot)
			}
		case placement.Place:
			p.count("place")
			severity := severityInfo
			if before.Placements[d.Machine].Active() {
				severity = severityWarning // it did not leave its host as planned
			}
			p.eventOf(d.Machine, severity, "machine-placed", "machine %q runs on host %q from now on: %s", d.Machine, d.Host, d.Reason)
		case placement.Leave:
			p.count("leave")
			p.eventOf(d.Machine, severityInfo, "machine-leaves", "machine %q is asked to shut down, to be started on another host: %q is in maintenance", d.Machine, before.Placements[d.Machine].Host)
		case placement.End:
			p.count("end")
			p.eventOf(d.Machine, severityOf(d.Why), "machine-ended", "machine %q: %s%s", d.Machine, d.Why.Text(), detail(d.Detail))
		case placement.Pair:
			p.count("pair")
			p.eventOf(d.Machine, severityInfo, "machine-secondary", "machine %q gets its secondary on host %q", d.Machine, d.Host)
		case placement.Part:
			p.count("part")
			p.eventOf(d.Machine, severityWarning, "machine-unprotected", "machine %q has no secondary any more (%s): %s", d.Machine, d.Why, d.Detail)
		case placement.Wait:
			waits[d.Machine] = d.Why
		}
	}
	p.mu.Lock()
	old := p.waits
	p.waits = waits
	p.mu.Unlock()
	for machine, why := range waits {
		if old[machine] != why {
			p.eventOf(machine, severityWarning, "machine-waits", "machine %q waits: %s", machine, why)
		}
	}
}

// newlyEvicted tells whether a host's return is told for the first time.
func (p *placer) newlyEvicted(d placement.Evict) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := p.evicted[d.Host] != d.Boot
	p.evicted[d.Host] = d.Boot
	return news
}

// died notes that a host's life is over, and that its last words are not those of one that has
// come back.
func (p *placer) died(host string, boot uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.evicted[host] = boot
}

func severityOf(why inventory.Ending) string {
	switch why {
	case inventory.EndedHostLost, inventory.EndedFailed:
		return severityError // nobody wanted that, and nobody starts it again
	case inventory.EndedPanic:
		return severityWarning
	case inventory.EndedShutdown, inventory.EndedStopped, inventory.EndedMoved:
	}
	return severityInfo
}

func detail(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func (p *placer) count(decision string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decided[decision]++
}

// decisions are those that took effect, and how often each did.
func (p *placer) decisions() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]uint64{"lost": 0, "place": 0, "leave": 0, "end": 0, "pair": 0, "part": 0}
	maps.Copy(out, p.decided)
	return out
}

// waiting returns why machines wait, by name.
func (p *placer) waiting() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.waits)
}

// whyWaits returns why a machine waits; empty: it does not.
func (p *placer) whyWaits(machine string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waits[machine]
}

func (p *placer) event(severity, kind, format string, args ...any) {
	p.eventOf("", severity, kind, format, args...)
}

func (p *placer) eventOf(machine, severity, kind, format string, args ...any) {
	p.publish(&steadfastv1.Event{Severity: severity, Kind: kind, Machine: machine, Text: fmt.Sprintf(format, args...)})
}
