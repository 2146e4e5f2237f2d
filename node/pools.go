package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/probe"
	"steadfast/node/size"
	"steadfast/san/drive"
	"steadfast/san/store"
)

// tickEvery is how often a pool that did not ask for it is given time.
const tickEvery = time.Second

// pool is a pool of the control state, open or absent.
type pool struct {
	id, name string
	store    atomic.Pointer[store.Pool]
	problem  string                 // why it is absent; under Node.mu
	drives   map[string]*drive.File // by path; under Node.admin
	wake     chan struct{}          // holds one token: Maintain has work
	stop     context.CancelFunc
	done     chan struct{} // closed when the maintain loop ended
}

// opened returns the pool's store, or nil while it is absent.
func (p *pool) opened() *store.Pool { return p.store.Load() }

// poolEvent is a store's event on its way to the event log.
type poolEvent struct {
	pool string
	store.Event
}

// hexID writes an identifier as the control state and the API do.
func hexID(id store.ID) string { return hex.EncodeToString(id[:]) }

// parseID reads what hexID wrote.
func parseID(text string) (store.ID, error) {
	var id store.ID
	b, err := hex.DecodeString(text)
	if err != nil || copy(id[:], b) != len(b) || len(b) != len(id) {
		return id, fault.New(fault.Corrupt, "%q in the control state is no identifier", text)
	}
	return id, nil
}

// storeOptions are what every pool of this node runs with.
func (n *Node) storeOptions(name func() string, wake chan struct{}) store.Options {
	return store.Options{
		CacheBytes: int64(n.cfg.Cache),
		Now:        func() store.Instant { return store.Instant(time.Now().UnixNano()) },
		NewID:      newID,
		Notify: func(e store.Event) {
			// The store may hold locks: the log's file must not hold it up.
			select {
			case n.poolQ <- poolEvent{name(), e}:
			default:
			}
		},
		Wake: func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		},
	}
}

// newID returns a random identifier.
func newID() store.ID {
	var id store.ID
	// Since Go 1.24 it ends the process rather than return an error.
	_, _ = rand.Read(id[:])
	return id
}

// openPools opens the pools of the control state. One that cannot be opened
// is absent, which goLive deals with.
func (n *Node) openPools() error {
	n.admin.Lock()
	defer n.admin.Unlock()
	for _, rec := range n.state.Pools() {
		// The error is the pool's problem, and was published.
		_ = n.openPool(rec)
	}
	return nil
}

// openPool opens a pool, starts its maintenance and shows its mapped volumes.
// On failure the pool is there, absent, with its problem. Under admin.
func (n *Node) openPool(rec control.Pool) error {
	var named []store.NamedDrive
	var missing error
	drives := map[string]*drive.File{}
	for _, path := range rec.Paths {
		d, err := drive.OpenFile(path)
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		drives[path] = d
		named = append(named, store.NamedDrive{Name: path, Drive: d})
	}
	p := &pool{id: rec.ID, name: rec.Name, drives: drives, wake: make(chan struct{}, 1)}
	err := missing
	if len(named) > 0 {
		var s *store.Pool
		// A pool may do without a drive that failed and was emptied: the
		// store knows which it needs.
		s, err = store.Open(n.storeOptions(func() string { return rec.Name }, p.wake), named)
		if err == nil && hexID(s.Status().ID) != rec.ID {
			err = errors.Join(fault.New(fault.Invalid, "the drives hold another pool (%q)", s.Status().Name), s.Close())
		}
		if err == nil {
			return n.adopt(p, s)
		}
		err = errors.Join(err, missing)
	}
	err = errors.Join(err, closeDrives(drives))
	return n.setAbsent(p, err)
}

// setAbsent enters p as absent, and tells when that, or why, is new.
func (n *Node) setAbsent(p *pool, err error) error {
	n.mu.Lock()
	old := n.pools[p.id]
	p.problem, p.drives = err.Error(), nil
	n.pools[p.id] = p
	n.mu.Unlock()
	if old == nil || old.problem != p.problem {
		n.events.publish(&steadfastv1.Event{Severity: severityError, Kind: "pool-absent", Pool: p.name, Text: fmt.Sprintf("pool %q cannot be opened: %v", p.name, err)})
	}
	return err
}

// adopt enters an open pool, starts its maintenance and shows its mapped
// volumes. On failure it is closed and absent. Under admin.
func (n *Node) adopt(p *pool, s *store.Pool) error {
	p.store.Store(s)
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan struct{})
	n.mu.Lock()
	n.pools[p.id] = p
	n.mu.Unlock()
	go n.maintain(ctx, p, s)
	err := n.showPool(p, s)
	if err == nil {
		n.wakeGroups()
		return nil
	}
	err = errors.Join(err, n.closePool(p))
	gone := &pool{id: p.id, name: p.name}
	return n.setAbsent(gone, err)
}

// maintain lends a pool time for its background work until ctx ends.
func (n *Node) maintain(ctx context.Context, p *pool, s *store.Pool) {
	defer close(p.done)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var last string
	for ctx.Err() == nil {
		more, err := s.Maintain()
		if err == nil && more {
			continue
		}
		// The same trouble each second is told once.
		if err != nil && err.Error() != last {
			last = err.Error()
			n.events.publish(&steadfastv1.Event{Severity: severityError, Kind: "maintenance-failed", Pool: p.name, Text: "background work failed: " + last})
		}
		wake := p.wake
		if err != nil {
			wake = nil // a failing pool is not tried faster than the tick
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-tick.C:
			n.removeEmptied(p, s)
		}
	}
}

// removeEmptied takes drives that are to leave out of the pool once they hold
// nothing. It is tried again at the next tick, and after a restart.
func (n *Node) removeEmptied(p *pool, s *store.Pool) {
	rec, _ := n.state.Pool(p.id)
	if len(rec.Leaving) == 0 || !n.admin.TryLock() {
		return
	}
	defer n.admin.Unlock()
	if n.closing {
		return
	}
	for _, d := range s.Status().Drives {
		if d.Used != 0 || !slices.Contains(rec.Leaving, d.Name) {
			continue
		}
		if err := n.removeDrive(p, s, d.Name); err != nil && !fault.Is(err, fault.Busy) {
			n.log.Warn("an emptied drive cannot be removed yet", "pool", p.name, "drive", d.Name, "error", err)
		}
	}
}

// removeDrive takes a drive out of an open pool and closes it. Under admin.
func (n *Node) removeDrive(p *pool, s *store.Pool, path string) error {
	if err := s.RemoveDrive(path); err != nil {
		return err
	}
	var err error
	if d := p.drives[path]; d != nil {
		delete(p.drives, path)
		err = d.Close()
	}
	rec, _ := n.state.Pool(p.id)
	rec.Leaving = slices.DeleteFunc(slices.Clone(rec.Leaving), func(l string) bool { return l == path })
	err = errors.Join(err, n.keepPaths(rec, s))
	n.publish("drive-removed", p.name, "", "drive %s is out of pool %q", path, p.name)
	return err
}

// keepPaths stores a pool's record with the drives it has now.
func (n *Node) keepPaths(rec control.Pool, s *store.Pool) error {
	st := s.Status()
	rec.ID, rec.Name, rec.Paths = hexID(st.ID), st.Name, nil
	for _, d := range st.Drives {
		rec.Paths = append(rec.Paths, d.Name)
	}
	return n.state.PutPool(rec)
}

// closePools closes every pool: the last thing of a stop that writes.
func (n *Node) closePools() error {
	var err error
	for _, p := range n.allPools() {
		err = errors.Join(err, n.closePool(p))
	}
	return err
}

// closePool hides a pool's volumes, stops its maintenance and closes it and
// its drives. The pool stays known. Under admin, or while stopping.
func (n *Node) closePool(p *pool) error {
	s := p.opened()
	if s == nil {
		return nil
	}
	p.stop()
	<-p.done
	err := n.hidePool(p)
	p.store.Store(nil)
	err = errors.Join(err, s.Close(), closeDrives(p.drives))
	p.drives = nil
	return fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("closing pool %q", p.name))
}

func closeDrives(drives map[string]*drive.File) error {
	var err error
	for _, d := range drives {
		err = errors.Join(err, d.Close())
	}
	return err
}

// allPools returns the pools by name.
func (n *Node) allPools() []*pool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.SortedFunc(maps.Values(n.pools), func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.id, b.id))
	})
}

// absentPools returns those that are not open.
func (n *Node) absentPools() []*pool {
	return slices.DeleteFunc(n.allPools(), func(p *pool) bool { return p.opened() != nil })
}

// findPool returns a pool by name; an empty name is the only one there is.
func (n *Node) findPool(name string) (*pool, error) {
	all := n.allPools()
	names := make([]string, len(all))
	for i, p := range all {
		if names[i] = p.name; p.name == name || name == "" && len(all) == 1 {
			return p, nil
		}
	}
	switch {
	case name != "":
		return nil, unknown("pool", name, "pool list", names)
	case len(all) == 0:
		return nil, fault.New(fault.NotFound, "there is no pool yet; make one with \"steadfast pool create\"")
	}
	return nil, fault.New(fault.Invalid, "there are %d pools; name one of them: %q", len(all), names)
}

// openNamed returns an open pool by name; see findPool.
func (n *Node) openNamed(name string) (*pool, *store.Pool, error) {
	p, err := n.findPool(name)
	if err != nil {
		return nil, nil, err
	}
	s := p.opened()
	if s == nil {
		n.mu.RLock()
		defer n.mu.RUnlock()
		return nil, nil, fault.New(fault.Failed, "pool %q is not open: %s", p.name, p.problem)
	}
	return p, s, nil
}

// newDrive prepares a drive to be formatted: it makes the file if it is not
// there, takes the drive for this process, and refuses one that holds data
// unless forced. undo puts back what can be: it closes the drive, and deletes
// a file made here.
func newDrive(path string, createSize int64, force bool) (d *drive.File, undo func() error, err error) {
	if !filepath.IsAbs(path) {
		return nil, nil, fault.New(fault.Invalid, "drive %q is not an absolute path", path)
	}
	info, err := os.Stat(path)
	made := errors.Is(err, os.ErrNotExist)
	switch {
	case made && createSize == 0:
		return nil, nil, fault.New(fault.NotFound, "drive %s does not exist; correct the path, or give --size to make a file there", path)
	case made:
		err = drive.CreateFile(path, createSize)
	case err != nil:
		err = fault.Wrap(fault.Denied, err, "cannot look at drive "+path)
	case createSize != 0 && info.Mode().IsRegular() && info.Size() == 0:
		// An empty file is as good as none, and may have been placed with care.
		err = fault.Wrap(fault.Full, os.Truncate(path, createSize/drive.BlockSize*drive.BlockSize), "cannot size "+path)
	case createSize != 0 && info.Size() != createSize:
		err = fault.New(fault.Invalid, "drive %s exists already and is not of %s; leave --size out to use it as it is", path, size.Format(createSize))
	}
	if err != nil {
		return nil, nil, err
	}
	undo = func() error { return nil }
	if made {
		undo = func() error { return os.Remove(path) }
	}
	if d, err = drive.OpenFile(path); err != nil {
		return nil, nil, errors.Join(err, undo())
	}
	remove := undo
	undo = func() error { return errors.Join(d.Close(), remove()) }
	if !made {
		if err := clearDrive(path, d.Size(), force); err != nil {
			return nil, nil, errors.Join(err, undo())
		}
	}
	return d, undo, nil
}

// clearDrive refuses a drive that holds data, or with force wipes it.
func clearDrive(path string, bytes int64, force bool) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "cannot open drive "+path)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	what, err := probe.Contents(f, bytes)
	switch {
	case err != nil:
		return fault.Wrap(fault.KindOf(err), err, "drive "+path)
	case what == "":
		return nil
	case !force:
		return fault.New(fault.Exists, "drive %s holds %s; if it may be destroyed, say --force", path, what)
	}
	return errors.Join(probe.Wipe(f, bytes), f.Sync())
}

// relayEvents turns stores' events into the node's until the node ends.
func (n *Node) relayEvents() {
	for {
		select {
		case e := <-n.poolQ:
			n.events.publish(translate(e))
		case <-n.ctx.Done():
			return
		}
	}
}

// translate names a store's event for the world.
func translate(e poolEvent) *steadfastv1.Event {
	out := &steadfastv1.Event{Pool: e.pool, Volume: e.Volume, Drive: e.Drive, OffsetBytes: e.Offset, Text: e.Text, Severity: severityWarning}
	switch e.Kind {
	case store.EventThreshold:
		out.Kind = "pool-threshold"
	case store.EventFull:
		out.Kind, out.Severity = "pool-full", severityError
	case store.EventSpaceBack:
		out.Kind, out.Severity = "pool-space-back", severityInfo
	case store.EventCorrupt:
		out.Kind, out.Severity = "corrupt", severityError
	case store.EventDriveFailed:
		out.Kind, out.Severity = "drive-failed", severityError
	case store.EventDriveGone:
		out.Kind, out.Severity = "drive-empty", severityInfo
	case store.EventDeleted:
		out.Kind, out.Severity = "deleted", severityInfo
	default:
		out.Kind = "pool"
	}
	if out.Text == "" {
		out.Text = out.Kind
	}
	return out
}

// publish tells of a change that an administrator made.
func (n *Node) publish(kind, pool, volume, format string, args ...any) {
	n.events.publish(&steadfastv1.Event{Severity: severityInfo, Kind: kind, Pool: pool, Volume: volume, Text: fmt.Sprintf(format, args...)})
}
