package store

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/store/format"
)

// change puts a change of the catalog into the log, durably, and returns when
// it is done.
func (p *Pool) change(o *format.Op) (*volume, error) {
	if err := p.changeAll(o); err != nil {
		return nil, err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	id := o.Volume
	if o.Kind == format.OpClone {
		id = o.NewID
	}
	return p.cat.volumes[id], nil
}

// changeAll is change for several that are done together or not at all.
func (p *Pool) changeAll(list ...*format.Op) error {
	err := p.logChange(true, list...)
	p.wanted.Store(true)
	if p.opt.Wake != nil {
		p.opt.Wake()
	}
	return err
}

// logChange puts changes of the catalog into the log, as one operation and so in
// one chunk: a crash leaves all of them or none. They are refused before they are
// logged where that can be told, and else when they are applied; one that is
// refused refuses them all.
func (p *Pool) logChange(durable bool, list ...*format.Op) error {
	if err := p.admitting(); err != nil {
		return err
	}
	stay, err := p.leave(list)
	if err != nil {
		return err
	}
	defer stay()
	o := &op{durable: durable}
	bytes := 0
	for _, c := range list {
		r := format.Record{Kind: format.RecordCatalog, Payload: c.Encode()}
		bytes += r.Size()
		o.records = append(o.records, r)
	}
	if format.HeaderBlocks(bytes) > format.ChunkHeaderBlocksMax {
		return fault.New(fault.Limit, "%d changes at once are too many for one step", len(list))
	}
	return p.commit(o)
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

func checkName(what, name string) error {
	if !nameForm.MatchString(name) {
		return fault.New(fault.Invalid, "%s name %q: 1 to 63 of a-z, 0-9, '-' and '.', beginning with a letter or digit", what, name)
	}
	return nil
}

func checkSize(size int64) error {
	switch {
	case size < VolumeSizeMin || size > VolumeSizeMax:
		return fault.New(fault.Invalid, "a volume has 1 MiB to 64 TiB, not %d bytes", size)
	case size%block.BlockSize != 0:
		return fault.New(fault.Invalid, "a volume's size is a multiple of 4096 bytes; %d is not", size)
	}
	return nil
}

func (p *Pool) now() uint64 { return uint64(p.opt.Now()) }

// CreateVolume makes an empty volume.
func (p *Pool) CreateVolume(spec VolumeSpec) (VolumeStatus, error) {
	if err := checkName("volume", spec.Name); err != nil {
		return VolumeStatus{}, err
	}
	if err := checkSize(spec.Size); err != nil {
		return VolumeStatus{}, err
	}
	id := spec.ID
	if id == (ID{}) {
		id = p.opt.NewID()
	}
	o := &format.Op{Kind: format.OpCreateVolume, Volume: id, Name: spec.Name, Size: uint64(spec.Size), Time: p.now()}
	if spec.WriteCache {
		o.Flags |= format.VolumeWriteCache
	}
	if spec.ReadOnly {
		o.Flags |= format.VolumeReadOnly
	}
	if _, err := p.change(o); err != nil {
		return VolumeStatus{}, err
	}
	return p.Volume(spec.Name)
}

// ChangeVolume changes a volume's settings, in one step.
func (p *Pool) ChangeVolume(name string, c VolumeChange) (VolumeStatus, error) {
	o, events, err := p.planChange(name, c)
	if err != nil {
		return VolumeStatus{}, err
	}
	if c.WriteCache != nil && !*c.WriteCache {
		// From the moment that answers mean stable storage, all before must.
		if err := p.syncDrives(); err != nil {
			return VolumeStatus{}, err
		}
	}
	v, err := p.change(o)
	if err != nil {
		return VolumeStatus{}, err
	}
	p.tell(v, events...)
	return p.Volume(o.Name)
}

// planChange turns a change into an operation and what to tell of it.
func (p *Pool) planChange(name string, c VolumeChange) (*format.Op, []VolumeEvent, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(name)
	if err != nil {
		return nil, nil, err
	}
	o := &format.Op{Kind: format.OpChangeVolume, Volume: v.id, Name: v.name, Size: uint64(v.size.Load()), Flags: v.flags()}
	var events []VolumeEvent
	if c.Name != nil {
		if err := checkName("volume", *c.Name); err != nil {
			return nil, nil, err
		}
		o.Name = *c.Name
	}
	if c.Size != nil {
		if err := checkSize(*c.Size); err != nil {
			return nil, nil, err
		}
		if *c.Size < v.size.Load() {
			return nil, nil, fault.New(fault.Invalid, "volume %q has %d bytes; volumes only grow", name, v.size.Load())
		}
		if *c.Size != v.size.Load() {
			events = append(events, VolumeResized)
		}
		o.Size = uint64(*c.Size)
	}
	set := func(bit uint8, on *bool) {
		if on != nil && *on != (o.Flags&bit != 0) {
			o.Flags ^= bit
			if len(events) == 0 || events[len(events)-1] != VolumeChanged {
				events = append(events, VolumeChanged)
			}
		}
	}
	set(format.VolumeWriteCache, c.WriteCache)
	set(format.VolumeReadOnly, c.ReadOnly)
	return o, events, nil
}

// tell calls a volume's watchers.
func (p *Pool) tell(v *volume, events ...VolumeEvent) {
	if v == nil {
		return
	}
	p.mu.RLock()
	list := v.watcherList()
	p.mu.RUnlock()
	for _, e := range events {
		for _, fn := range list {
			fn(e)
		}
	}
}

// DeleteVolume deletes a volume that is not open. With its snapshots if
// withSnapshots, else fault.Busy when it has some. fault.Busy, naming them,
// while clones stand on its snapshots. Space comes back through Maintain.
func (p *Pool) DeleteVolume(name string, withSnapshots bool) error {
	p.mu.RLock()
	v, err := p.cat.findVolume(name)
	n := 0
	if err == nil {
		n = len(v.snapshots)
	}
	p.mu.RUnlock()
	if err != nil {
		return err
	}
	if n > 0 && !withSnapshots {
		return fault.New(fault.Busy, "volume %q has %d snapshots; delete them first, or with it", name, n)
	}
	_, err = p.change(&format.Op{Kind: format.OpDeleteVolume, Volume: v.id})
	return err
}

// volumeID returns the identifier of a volume by name.
func (p *Pool) volumeID(name string) (ID, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(name)
	if err != nil {
		return ID{}, err
	}
	return v.id, nil
}

// Rollback makes the volume's content that of its snapshot again. Snapshots
// taken later stay. The volume may be open; its users must not be writing.
func (p *Pool) Rollback(volume, snapshot string) error {
	id, err := p.volumeID(volume)
	if err != nil {
		return err
	}
	v, err := p.change(&format.Op{Kind: format.OpRollback, Volume: id, Name: snapshot})
	if err != nil {
		return err
	}
	p.tell(v, VolumeReplaced, VolumeResized)
	return nil
}

// Clone makes a new writable volume with the snapshot's content.
func (p *Pool) Clone(volume, snapshot, name string) (VolumeStatus, error) {
	if err := checkName("volume", name); err != nil {
		return VolumeStatus{}, err
	}
	id, err := p.volumeID(volume)
	if err != nil {
		return VolumeStatus{}, err
	}
	if _, err := p.change(&format.Op{Kind: format.OpClone, Volume: id, Name: snapshot, NewID: p.opt.NewID(), NewName: name, Time: p.now()}); err != nil {
		return VolumeStatus{}, err
	}
	return p.Volume(name)
}

// SetThresholds sets the percentages of capacity at which volumes raise the
// thin-provisioning unit attention. Ascending, 1 to 99; empty for none.
func (p *Pool) SetThresholds(percent []int) error {
	o := &format.Op{Kind: format.OpThresholds}
	last := 0
	for _, t := range percent {
		if t <= last || t > 99 {
			return fault.New(fault.Invalid, "thresholds are percentages from 1 to 99, ascending; %d is not", t)
		}
		o.Value = append(o.Value, uint8(t))
		last = t
	}
	_, err := p.change(o)
	return err
}

// OpenVolume opens a volume for I/O. Several openings are allowed.
func (p *Pool) OpenVolume(name string) (*Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.cat.findVolume(name)
	if err == nil {
		err = openable(v.leaving, "volume", name)
	}
	if err != nil {
		return nil, err
	}
	v.open++
	return &Volume{p: p, vol: v}, nil
}

// OpenSnapshot opens a snapshot for reading.
func (p *Pool) OpenSnapshot(volume, name string) (*Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.cat.findVolume(volume)
	if err != nil {
		return nil, err
	}
	s, err := v.findSnapshot(name)
	if err == nil {
		err = openable(v.leaving+s.leaving, "snapshot", name)
	}
	if err != nil {
		return nil, err
	}
	s.open++
	return &Volume{p: p, vol: v, snap: s, past: viewOf(s.branch, s.pin.lsn)}, nil
}

// Status describes the pool.
func (p *Pool) Status() PoolStatus {
	s := PoolStatus{ID: p.id, Name: p.name, State: "online", CorruptBlocks: p.corrupt.Load(), WrittenByUsers: p.userBytes.Load(), WrittenToDrives: p.written.Load()}
	s.CacheHits, s.CacheMisses = p.blocks.Counts()
	s.Data = blockBytes(p.dataBlocks.Load())
	s.Metadata = blockBytes(int64(p.tree.Nodes()) + p.blobBlocks.Load())
	s.Used, s.Capacity = s.Data+s.Metadata, blockBytes(p.capacity.Load())
	p.space.mu.Lock()
	for _, d := range p.space.devs {
		if d != nil {
			state := d.state.String()
			if d.leaving && d.state == devOnline {
				state = devEvacuating.String()
			}
			s.Drives = append(s.Drives, DriveStatus{ID: d.id, Name: d.name, State: state, Size: int64(d.blocks) * format.BlockSize, Used: blockBytes(d.live), LastError: d.lastErr})
		}
	}
	p.space.mu.Unlock()
	p.logMu.Lock()
	s.CommitSequence = LSN(p.tail.lsn - 1)
	p.logMu.Unlock()
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.usable() != nil {
		s.State = "failed"
	}
	for _, t := range p.cat.thresholds {
		s.Thresholds = append(s.Thresholds, int(t))
	}
	alone := int64(0)
	for _, v := range p.cat.volumes {
		s.Volumes++
		s.Snapshots += len(v.snapshots)
		s.Provisioned += v.size.Load()
	}
	for _, b := range p.cat.branches {
		if b.head != nil {
			alone += b.own()
		}
		for _, q := range b.pins {
			if q.snapshot != nil {
				alone += q.exclusive
			}
		}
	}
	going := p.cat.reclaimable()
	s.Reclaimable = blockBytes(going)
	s.Shared = max(0, s.Data-blockBytes(alone+going))
	return s
}

// stays tells whether a volume or a snapshot reads b.
func (b *branch) stays() bool {
	return b.head != nil || slices.ContainsFunc(b.pins, func(p *pin) bool {
		return p.snapshot != nil || slices.ContainsFunc(p.children, (*branch).stays)
	})
}

// own counts the blocks that only b's head reads: its own, and as far down as
// nobody else stands, what it reads of those below.
func (b *branch) own() int64 {
	n := b.exclusive
	for alone := len(b.pins) == 0; alone && b.fork != nil && b.fork.isFork() && len(b.fork.children) == 1; {
		n += b.fork.exclusive
		b = b.parent
		alone = len(b.pins) == 1
	}
	return n
}

// reclaimable counts the blocks that jobs have still to free.
func (c *catalog) reclaimable() (n int64) {
	for _, b := range c.branches {
		if !b.stays() { // it goes as a whole
			n += b.entries
			continue
		}
		if b.leaving {
			n += b.exclusive
		}
		for _, p := range b.pins {
			if p.dying && len(p.children) == 0 {
				n += p.exclusive
			}
		}
	}
	return n
}

// Volumes lists all volumes by name.
func (p *Pool) Volumes() []VolumeStatus {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]VolumeStatus, 0, len(p.cat.volumes))
	for _, v := range p.cat.volumes {
		out = append(out, p.describeVolume(v))
	}
	slices.SortFunc(out, func(a, b VolumeStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Volume describes one volume.
func (p *Pool) Volume(name string) (VolumeStatus, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(name)
	if err != nil {
		return VolumeStatus{}, err
	}
	return p.describeVolume(v), nil
}

func (p *Pool) describeVolume(v *volume) VolumeStatus {
	s := VolumeStatus{
		ID: v.id, Name: v.name, Size: v.size.Load(), Referenced: blockBytes(v.referenced), Exclusive: blockBytes(v.branch.own()),
		WriteCache: v.writeCache.Load(), ReadOnly: v.readOnly.Load(), Snapshots: len(v.snapshots), CorruptBlocks: v.corrupt.Load(),
		Created: time.Unix(0, int64(min(v.created, math.MaxInt64))),
	}
	if v.clone {
		s.Origin = p.cat.origin(v)
	}
	return s
}

// origin names the snapshot that a clone stands on.
func (c *catalog) origin(v *volume) string {
	for b := v.branch; b.parent != nil; b = b.parent {
		if s := b.fork.snapshot; s != nil && s.volume != v {
			return s.volume.name + "@" + s.name
		}
	}
	return ""
}

// Snapshots lists a volume's snapshots, oldest first.
func (p *Pool) Snapshots(volume string) ([]SnapshotStatus, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := p.cat.findVolume(volume)
	if err != nil {
		return nil, err
	}
	out := make([]SnapshotStatus, 0, len(v.snapshots))
	for _, s := range v.snapshots {
		out = append(out, p.describeSnapshot(s))
	}
	slices.SortFunc(out, func(a, b SnapshotStatus) int { return cmp.Compare(a.LSN, b.LSN) })
	return out, nil
}

func (p *Pool) describeSnapshot(s *snapshot) SnapshotStatus {
	out := SnapshotStatus{
		Volume: s.volume.name, Name: s.name, LSN: LSN(s.pin.lsn), Size: s.size, Referenced: blockBytes(s.referenced),
		Created: time.Unix(0, int64(min(s.created, math.MaxInt64))),
	}
	for _, v := range p.cat.clones(s) {
		out.Clones = append(out.Clones, v.name)
	}
	if len(s.pin.children) == 0 {
		out.Exclusive = blockBytes(s.pin.exclusive)
	}
	return out
}

func percentText(t uint8, used, capacity int64) string {
	return fmt.Sprintf("the pool is over %d%% full: %d of %d MiB", t, blockBytes(used)>>20, blockBytes(capacity)>>20)
}
