package store

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/san/store/format"
)

// gone is the successor of a block's newest entry: it was never overwritten.
const gone = uint64(format.GenMax) + 1

// catalog is what the pool holds besides blocks. Changes come from the log, in
// its order, or from reclaiming; both hold Pool.mu.
type catalog struct {
	thresholds []uint8
	nextBranch uint32
	branches   map[uint32]*branch
	volumes    map[ID]*volume
	byName     map[string]*volume
	jobs       []*job
}

// branch is a line of history.
//
//	        pins (moments that are still read)
//	          v     v
//	----------+-----+------> head (of a volume), or none
//	          |
//	          +------------> a child branch: its blocks, and below them ours
type branch struct {
	id        uint32
	owner     ID // the volume it was made for
	parent    *branch
	parentLSN uint64
	fork      *pin // the parent's, at parentLSN; nil without a parent
	head      *volume
	pins      []*pin // ascending
	entries   int64  // map entries that hold data
	exclusive int64  // of these, newer than every pin and not shared
	maxPin    atomic.Uint64
	// job is what is being reclaimed of the branch now, or nil; leaving tells
	// that the head is gone and not reclaimed yet.
	job     *job
	leaving bool
}

// pin is a moment of a branch that a snapshot or child branches read.
type pin struct {
	lsn       uint64
	exclusive int64 // blocks only this pin reads
	snapshot  *snapshot
	children  []*branch
	// dying tells that its snapshot is gone and a job will see to that. With
	// neither, the pin is a fork; see readers.go.
	dying bool
}

// volume is a volume of the pool, open or not.
type volume struct {
	id         ID
	name       string
	size       atomic.Int64
	writeCache atomic.Bool
	readOnly   atomic.Bool
	created    uint64
	branch     *branch
	referenced int64
	clone      bool
	attributes map[string][]byte
	snapshots  []*snapshot // oldest first
	trims      trims
	view       atomic.Pointer[view]
	deleted    bool

	open     int
	leaving  int // deletions under way: it is not opened any more
	corrupt  atomic.Uint64
	watchers map[int]func(VolumeEvent)
	watched  int
	locks    stripes
}

// snapshot is a named moment of a volume.
type snapshot struct {
	name       string
	volume     *volume
	branch     *branch
	pin        *pin
	size       int64
	created    uint64
	referenced int64
	open       int
	leaving    int // as a volume's
}

// view is where a reader looks for a block: each branch up to a moment, the
// nearest first. It never changes.
type view struct {
	head  *branch
	links []link
}

type link struct {
	branch uint32
	lsn    uint64
}

// viewOf returns the view of a branch at a moment.
func viewOf(b *branch, lsn uint64) *view {
	v := &view{head: b}
	for b != nil {
		v.links = append(v.links, link{b.id, lsn})
		b, lsn = b.parent, b.parentLSN
	}
	return v
}

// leads tells whether a view goes by a branch.
func (v *view) leads(b *branch) bool {
	return slices.ContainsFunc(v.links, func(l link) bool { return l.branch == b.id })
}

// job is reclaiming to do; see format.Job.
type job struct {
	format.Job
	branch *branch
	pin    *pin // nil for a head
}

func newCatalog() *catalog {
	return &catalog{nextBranch: format.BranchShared + 1, branches: map[uint32]*branch{}, volumes: map[ID]*volume{}, byName: map[string]*volume{}}
}

// pinAt returns the pin at lsn, made if it is not there.
func (b *branch) pinAt(lsn uint64) *pin {
	i, ok := slices.BinarySearchFunc(b.pins, lsn, func(p *pin, g uint64) int { return cmp.Compare(p.lsn, g) })
	if !ok {
		b.pins = slices.Insert(b.pins, i, &pin{lsn: lsn})
		b.setMaxPin()
	}
	return b.pins[i]
}

func (b *branch) removePin(p *pin) {
	b.pins = slices.DeleteFunc(b.pins, func(q *pin) bool { return q == p })
	b.setMaxPin()
}

func (p *pin) removeChild(b *branch) {
	p.children = slices.DeleteFunc(p.children, func(c *branch) bool { return c == b })
}

func (b *branch) setMaxPin() {
	top := uint64(0)
	if n := len(b.pins); n > 0 {
		top = b.pins[n-1].lsn
	}
	b.maxPin.Store(top)
}

// newBranch makes a branch of v that forks from parent at lsn, or from nothing.
func (c *catalog) newBranch(v *volume, parent *branch, lsn uint64) *branch {
	b := &branch{id: c.nextBranch, owner: v.id}
	c.nextBranch++
	c.branches[b.id] = b
	b.stand(parent, lsn)
	return b
}

// stand makes b fork from parent at lsn, or from nothing.
func (b *branch) stand(parent *branch, lsn uint64) {
	b.parent, b.parentLSN, b.fork = parent, lsn, nil
	if parent != nil {
		b.fork = parent.pinAt(lsn)
		b.fork.children = append(b.fork.children, b)
	}
}

// setHead makes b the head of v.
func (v *volume) setHead(b *branch) {
	v.branch, b.head = b, v
	v.view.Store(viewOf(b, format.GenMax))
}

// abandon takes the head away from a branch and has it reclaimed.
func (c *catalog) abandon(b *branch) {
	b.head, b.leaving = nil, true
	c.jobs = append(c.jobs, &job{Job: format.Job{Branch: b.id, Head: true}, branch: b})
}

// findVolume returns a volume by name.
func (c *catalog) findVolume(name string) (*volume, error) {
	if v := c.byName[name]; v != nil {
		return v, nil
	}
	return nil, fault.New(fault.NotFound, "there is no volume %q", name)
}

func (v *volume) findSnapshot(name string) (*snapshot, error) {
	for _, s := range v.snapshots {
		if s.name == name {
			return s, nil
		}
	}
	return nil, fault.New(fault.NotFound, "volume %q has no snapshot %q", v.name, name)
}

// clones lists the volumes whose branches fork from s.
func (c *catalog) clones(s *snapshot) (out []*volume) {
	for _, b := range s.pin.children {
		if v := c.volumes[b.owner]; v != nil && v != s.volume && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *volume) int { return strings.Compare(a.name, b.name) })
	return out
}

// check tells whether an operation can be done, before it is logged and again
// when it is applied: the two see the same unless something came in between.
func (c *catalog) check(o *format.Op) error {
	if o.Kind == format.OpThresholds {
		return nil
	}
	if o.Kind == format.OpCreateVolume {
		if v := c.volumes[o.Volume]; v != nil {
			return fault.New(fault.Exists, "volume %q has this identifier already", v.name)
		}
		return c.nameFree(o.Name)
	}
	v := c.volumes[o.Volume]
	if v == nil {
		return fault.New(fault.NotFound, "the volume is gone")
	}
	switch o.Kind {
	case format.OpChangeVolume:
		if o.Name != v.name && c.byName[o.Name] != nil {
			return c.nameFree(o.Name)
		}
		if int64(o.Size) < v.size.Load() {
			return fault.New(fault.Invalid, "volume %q is larger already; volumes only grow", v.name)
		}
	case format.OpCreateSnapshot:
		if _, err := v.findSnapshot(o.Name); err == nil {
			return fault.New(fault.Exists, "volume %q has a snapshot %q already", v.name, o.Name)
		}
		if int64(o.Size) > v.size.Load() || int64(o.Size) < 0 {
			return fault.New(fault.Invalid, "a snapshot of %d bytes of volume %q, which has %d", o.Size, v.name, v.size.Load())
		}
	case format.OpDeleteSnapshot:
		s, err := v.findSnapshot(o.Name)
		if err != nil {
			return err
		}
		return c.deletable(s)
	case format.OpRollback:
		_, err := v.findSnapshot(o.Name)
		return err
	case format.OpClone:
		if _, err := v.findSnapshot(o.Name); err != nil {
			return err
		}
		return c.nameFree(o.NewName)
	case format.OpDeleteVolume:
		return c.volumeDeletable(v)
	default: // an attribute or a base can always be set
	}
	return nil
}

// checkAll tells whether operations can be done together: each of them, and no two
// are about the same snapshot.
func (c *catalog) checkAll(list []*format.Op) error {
	for i, o := range list {
		if err := c.check(o); err != nil {
			return err
		}
		for _, p := range list[:i] {
			if p.Volume == o.Volume && p.Name == o.Name {
				return fault.New(fault.Invalid, "%q is named twice in one change", o.Name)
			}
		}
	}
	return nil
}

func (c *catalog) nameFree(name string) error {
	if c.byName[name] != nil {
		return fault.New(fault.Exists, "there is a volume %q already", name)
	}
	return nil
}

func (c *catalog) deletable(s *snapshot) error {
	if s.open > 0 {
		return fault.New(fault.Busy, "snapshot %q of volume %q is in use", s.name, s.volume.name)
	}
	if list := c.clones(s); len(list) > 0 {
		names := make([]string, len(list))
		for i, v := range list {
			names[i] = v.name
		}
		return fault.New(fault.Busy, "snapshot %q of volume %q is what %s stands on; delete that first", s.name, s.volume.name, strings.Join(names, ", "))
	}
	return nil
}

func (c *catalog) volumeDeletable(v *volume) error {
	if v.open > 0 {
		return fault.New(fault.Busy, "volume %q is in use; unmap it first", v.name)
	}
	for _, s := range v.snapshots {
		if err := c.deletable(s); err != nil {
			return err
		}
	}
	return nil
}

// apply does a logged change. lsn is its place in the log.
func (c *catalog) apply(o *format.Op, lsn uint64) error {
	if err := c.check(o); err != nil {
		return err
	}
	v := c.volumes[o.Volume]
	switch o.Kind {
	case format.OpCreateVolume:
		v = c.addVolume(o.Volume, o.Name, o.Size, o.Time)
		v.setFlags(o.Flags)
		v.setHead(c.newBranch(v, nil, 0))
	case format.OpChangeVolume:
		delete(c.byName, v.name)
		v.name = o.Name
		c.byName[v.name] = v
		v.size.Store(int64(o.Size))
		v.setFlags(o.Flags)
	case format.OpDeleteVolume:
		c.deleteVolume(v)
	case format.OpCreateSnapshot:
		s := &snapshot{name: o.Name, volume: v, branch: v.branch, size: v.size.Load(), created: o.Time, referenced: v.referenced}
		if o.Size > 0 {
			s.size = int64(o.Size)
		}
		s.pin = v.branch.pinAt(lsn)
		s.pin.snapshot = s
		v.snapshots = append(v.snapshots, s)
		v.branch.exclusive = 0 // all it has, the snapshot reads too
	case format.OpDeleteSnapshot:
		s, _ := v.findSnapshot(o.Name)
		c.dropSnapshot(s)
	case format.OpRollback:
		s, _ := v.findSnapshot(o.Name)
		old := v.branch
		v.setHead(c.newBranch(v, s.branch, s.pin.lsn))
		c.abandon(old)
		v.size.Store(s.size)
		v.referenced = s.referenced
		// The old line is about to be reclaimed, and with it what it would take to
		// say less.
		v.trims.note(0, lbaEnd, lsn)
	case format.OpClone:
		s, _ := v.findSnapshot(o.Name)
		n := c.addVolume(o.NewID, o.NewName, uint64(s.size), o.Time)
		n.clone, n.referenced = true, s.referenced
		n.writeCache.Store(v.writeCache.Load())
		n.setHead(c.newBranch(n, s.branch, s.pin.lsn))
		n.trims.note(0, lbaEnd, lsn) // what it stands on is older, and new to it
	case format.OpThresholds:
		c.thresholds = o.Value
	case format.OpAttribute:
		if o.Delete {
			delete(v.attributes, o.Name)
		} else {
			v.attributes[o.Name] = o.Value
		}
	case format.OpBase:
		if o.Delete {
			v.trims.clearBase()
		} else {
			v.trims.setBase(o.Size)
		}
	default:
		return fault.New(fault.Corrupt, "the log holds a change of unknown kind %d", o.Kind)
	}
	return nil
}

func (c *catalog) addVolume(id ID, name string, size, created uint64) *volume {
	v := &volume{id: id, name: name, created: created, attributes: map[string][]byte{}}
	v.size.Store(int64(size))
	c.volumes[id], c.byName[name] = v, v
	return v
}

func (v *volume) setFlags(flags uint8) {
	v.writeCache.Store(flags&format.VolumeWriteCache != 0)
	v.readOnly.Store(flags&format.VolumeReadOnly != 0)
}

func (v *volume) flags() (f uint8) {
	if v.writeCache.Load() {
		f |= format.VolumeWriteCache
	}
	if v.readOnly.Load() {
		f |= format.VolumeReadOnly
	}
	return f
}

func (c *catalog) deleteVolume(v *volume) {
	c.abandon(v.branch)
	for len(v.snapshots) > 0 {
		c.dropSnapshot(v.snapshots[0])
	}
	v.deleted = true
	delete(c.volumes, v.id)
	delete(c.byName, v.name)
}

// dropSnapshot takes a snapshot away and has reclaimed what it alone read.
func (c *catalog) dropSnapshot(s *snapshot) {
	s.volume.snapshots = slices.DeleteFunc(s.volume.snapshots, func(t *snapshot) bool { return t == s })
	s.pin.snapshot, s.pin.dying = nil, true
	c.jobs = append(c.jobs, &job{Job: format.Job{Branch: s.branch.id, LSN: s.pin.lsn}, branch: s.branch, pin: s.pin})
}

// encode returns the catalog as a checkpoint holds it.
func (c *catalog) encode() []byte {
	out := format.Catalog{Thresholds: c.thresholds, NextBranch: c.nextBranch}
	for _, id := range slices.Sorted(maps.Keys(c.branches)) {
		b := c.branches[id]
		fb := format.Branch{ID: b.id, Owner: b.owner, ParentLSN: b.parentLSN, Entries: uint64(b.entries), Exclusive: uint64(b.exclusive)}
		if b.parent != nil {
			fb.Parent = b.parent.id
		}
		for _, p := range b.pins {
			fb.Pins = append(fb.Pins, format.Pin{LSN: p.lsn, Exclusive: uint64(p.exclusive)})
		}
		out.Branches = append(out.Branches, fb)
	}
	for _, name := range slices.Sorted(maps.Keys(c.byName)) {
		out.Volumes = append(out.Volumes, c.byName[name].format())
	}
	for _, j := range c.jobs {
		out.Jobs = append(out.Jobs, j.Job)
	}
	return out.Encode()
}

func (v *volume) format() format.Volume {
	fv := format.Volume{
		ID: v.id, Name: v.name, Size: uint64(v.size.Load()), Flags: v.flags(), Created: v.created,
		Branch: v.branch.id, Referenced: uint64(v.referenced), Clone: v.clone,
		Trims: v.trims.format(),
	}
	for _, k := range slices.Sorted(maps.Keys(v.attributes)) {
		fv.Attributes = append(fv.Attributes, format.Attribute{Key: k, Value: v.attributes[k]})
	}
	for _, s := range v.snapshots {
		fv.Snapshots = append(fv.Snapshots, format.Snapshot{Name: s.name, Branch: s.branch.id, LSN: s.pin.lsn, Size: uint64(s.size), Created: s.created, Referenced: uint64(s.referenced)})
	}
	return fv
}

// decodeCatalog builds a catalog from its bytes, and refuses one whose parts
// do not refer to each other.
func decodeCatalog(p []byte) (*catalog, error) {
	in, err := format.DecodeCatalog(p)
	if err != nil {
		return nil, err
	}
	c := newCatalog()
	c.thresholds, c.nextBranch = in.Thresholds, in.NextBranch
	bad := func(what string) error {
		return fault.New(fault.Corrupt, "the catalog contradicts itself: %s", what)
	}
	for _, fb := range in.Branches {
		b := &branch{id: fb.ID, owner: fb.Owner, entries: int64(fb.Entries), exclusive: int64(fb.Exclusive)}
		for _, p := range fb.Pins {
			b.pins = append(b.pins, &pin{lsn: p.LSN, exclusive: int64(p.Exclusive)})
		}
		b.setMaxPin()
		if c.branches[b.id] != nil || b.id >= c.nextBranch {
			return nil, bad("branch numbers")
		}
		c.branches[b.id] = b
	}
	for _, fb := range in.Branches {
		if fb.Parent == 0 {
			continue
		}
		parent := c.branches[fb.Parent]
		// A branch is younger than its parent: so there are no rings.
		if parent == nil || fb.Parent >= fb.ID {
			return nil, bad("a branch without its parent")
		}
		c.branches[fb.ID].stand(parent, fb.ParentLSN)
	}
	for i := range in.Volumes {
		if err := c.decodeVolume(&in.Volumes[i]); err != nil {
			return nil, err
		}
	}
	for _, fj := range in.Jobs {
		j := &job{Job: fj, branch: c.branches[fj.Branch]}
		if j.branch == nil {
			return nil, bad("a job without its branch")
		}
		if fj.Head {
			j.branch.leaving = true
		} else {
			j.pin = j.branch.pinAt(fj.LSN)
			j.pin.dying = true
		}
		if fj.Started {
			j.branch.job = j
		}
		c.jobs = append(c.jobs, j)
	}
	return c, nil
}

func (c *catalog) decodeVolume(fv *format.Volume) error {
	b := c.branches[fv.Branch]
	if b == nil || b.head != nil || c.volumes[fv.ID] != nil || c.byName[fv.Name] != nil {
		return fault.New(fault.Corrupt, "the catalog contradicts itself: volume %q", fv.Name)
	}
	v := c.addVolume(fv.ID, fv.Name, fv.Size, fv.Created)
	v.setFlags(fv.Flags)
	v.referenced, v.clone, v.trims = int64(fv.Referenced), fv.Clone, decodeTrims(fv.Trims)
	v.setHead(b)
	for _, a := range fv.Attributes {
		v.attributes[a.Key] = a.Value
	}
	for _, fs := range fv.Snapshots {
		sb := c.branches[fs.Branch]
		if sb == nil {
			return fault.New(fault.Corrupt, "the catalog contradicts itself: snapshot %q of volume %q", fs.Name, fv.Name)
		}
		s := &snapshot{name: fs.Name, volume: v, branch: sb, size: int64(fs.Size), created: fs.Created, referenced: int64(fs.Referenced)}
		s.pin = sb.pinAt(fs.LSN)
		s.pin.snapshot = s
		v.snapshots = append(v.snapshots, s)
	}
	return nil
}
