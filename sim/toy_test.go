package sim

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"reflect"
	"slices"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive"
	"steadfast/san/store"
	"steadfast/san/store/storetest"
)

// toy is the simplest store that keeps its promises: the model's own state,
// and a log of operations on the first drive that is replayed on opening. It
// is there to be broken: see TestJudge. It knows no space and no damage.
type toy struct {
	drive drive.Drive
	state *storetest.State
	next  uint64 // sequence of the next record
	at    int64  // where it goes
	opt   store.Options
	flaw  flaw
	open  map[string]int
	lives *lives
}

// lives has, for each life of a toy, the operation it began with: what a crash
// takes back must not share its positions with what comes after.
type lives struct{ began []uint64 }

// positionLife is where the life begins in a position; below is the operation.
const positionLife = 32

// flaw is what a toy does wrong.
type flaw string

const (
	soundToy      flaw = ""
	neverDurable  flaw = "durable writes are not"
	flushesNot    flaw = "flush does nothing"
	skipsDamage   flaw = "recovery goes on after a hole in the log"
	tornSnapshot  flaw = "a snapshot follows its volume"
	lateAnswer    flaw = "a write is answered before it is anywhere"
	trimsTooMuch  flaw = "trim takes a block too many"
	forgetsRename flaw = "a rename is not logged"
	sharesClone   flaw = "a copy loses its last block"
	missesTrims   flaw = "what was trimmed is not called changed"
	saysAll       flaw = "everything is called changed"
	losesBase     flaw = "a base is not logged"
	reusesLSNs    flaw = "positions of what a crash took back come again"
)

const toyHeader = 24 // length, checksum, sequence

func toySystem(f flaw) storetest.System {
	l := &lives{}
	return storetest.System{
		Create: func(_ string, opt store.Options, drives []store.NamedDrive) (storetest.Pool, error) {
			l.began = []uint64{1}
			return &toy{drive: drives[0].Drive, state: storetest.NewState(), next: 1, opt: opt, flaw: f, open: map[string]int{}, lives: l}, nil
		},
		Open: func(opt store.Options, drives []store.NamedDrive) (storetest.Pool, error) {
			p := &toy{drive: drives[0].Drive, state: storetest.NewState(), next: 1, opt: opt, flaw: f, open: map[string]int{}, lives: l}
			err := p.replay()
			l.began = append(l.began, p.next)
			return p, err
		},
	}
}

// log applies an operation and appends it to the log.
func (p *toy) log(op storetest.Op, durable bool) error {
	body, err := encodeOp(op)
	if err != nil {
		return err
	}
	n := (toyHeader + len(body) + drive.BlockSize - 1) / drive.BlockSize * drive.BlockSize
	if p.at+int64(n) > p.drive.Size() {
		return fault.New(fault.Full, "the log is full")
	}
	buf := bufpool.Aligned(n)
	le := binary.LittleEndian
	le.PutUint64(buf, uint64(len(body)))
	le.PutUint64(buf[16:], p.next)
	copy(buf[toyHeader:], body)
	le.PutUint64(buf[8:], uint64(crc32.ChecksumIEEE(buf[16:toyHeader+len(body)])))
	write := p.drive.WriteAt
	if durable && p.flaw != neverDurable {
		if err := p.drive.Flush(); err != nil { // all before it: recovery reads in order
			return err
		}
		write = p.drive.WriteDurable
	}
	if !durable && p.flaw == lateAnswer {
		write = func([][]byte, int64) error { return nil }
	}
	if err := write([][]byte{buf}, p.at); err != nil {
		return err
	}
	p.apply(op)
	p.at += int64(n)
	return nil
}

// toyOps are the operations a toy logs, by the names of their types.
var toyOps = map[string]reflect.Type{}

// register makes toyOps; the list of operations is here and nowhere else.
func register() {
	for _, op := range []storetest.Op{
		storetest.Write{},
		storetest.Clear{},
		storetest.Copy{},
		storetest.CreateVolume{},
		storetest.ChangeVolume{},
		storetest.DeleteVolume{},
		storetest.CreateSnapshot{},
		storetest.DeleteSnapshot{},
		storetest.Rollback{},
		storetest.Clone{},
		storetest.SetAttribute{},
		storetest.SetThresholds{},
		storetest.SetBase{},
		storetest.ClearBase{},
	} {
		toyOps[fmt.Sprintf("%T", op)] = reflect.TypeOf(op)
	}
}

func encodeOp(op storetest.Op) ([]byte, error) {
	body, err := json.Marshal(op)
	return append(fmt.Appendf(nil, "%T\n", op), body...), err
}

func decodeOp(p []byte) (storetest.Op, error) {
	name, body, _ := bytes.Cut(p, []byte("\n"))
	t, ok := toyOps[string(name)]
	if !ok {
		return nil, fmt.Errorf("no operation %q", name)
	}
	op := reflect.New(t)
	if err := json.Unmarshal(body, op.Interface()); err != nil {
		return nil, err
	}
	return op.Elem().Interface().(storetest.Op), nil
}

func (p *toy) apply(op storetest.Op) {
	if c, ok := op.(storetest.Clear); ok && p.flaw == trimsTooMuch {
		c.Length += block.BlockSize
		op = c
	}
	if c, ok := op.(storetest.Copy); ok && p.flaw == sharesClone {
		c.Length -= c.Length % block.BlockSize
		op = c
	}
	op.Apply(p.state, p.next)
	if s, ok := op.(storetest.CreateSnapshot); ok && p.flaw == tornSnapshot {
		v := p.state.Volumes[s.Volume]
		v.Snapshot(s.Name).Content = v.Content
	}
	p.next++
}

// replay reads the log to its end: the first record that is not whole.
func (p *toy) replay() error {
	for p.at < p.drive.Size() {
		op, n, err := p.record()
		switch {
		case err == nil:
			p.apply(op)
			p.at += n
		case p.flaw == skipsDamage:
			p.at += drive.BlockSize
		default:
			return nil
		}
	}
	return nil
}

// record reads the record at p.at and returns its length on the drive.
func (p *toy) record() (storetest.Op, int64, error) {
	head := bufpool.Aligned(drive.BlockSize)
	if err := p.drive.ReadAt(head, p.at); err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	n := int64(le.Uint64(head))
	total := (toyHeader + n + drive.BlockSize - 1) / drive.BlockSize * drive.BlockSize
	if n <= 0 || total <= 0 || p.at+total > p.drive.Size() {
		return nil, 0, errors.New("no record")
	}
	buf := bufpool.Aligned(int(total))
	if err := p.drive.ReadAt(buf, p.at); err != nil {
		return nil, 0, err
	}
	if uint64(crc32.ChecksumIEEE(buf[16:toyHeader+n])) != le.Uint64(buf[8:]) {
		return nil, 0, errors.New("torn")
	}
	if le.Uint64(buf[16:]) != p.next && p.flaw != skipsDamage {
		return nil, 0, errors.New("not the next one")
	}
	op, err := decodeOp(buf[toyHeader : toyHeader+n])
	return op, total, err
}

func (p *toy) Close() error            { return p.drive.Flush() }
func (p *toy) Maintain() (bool, error) { return false, nil }
func (p *toy) StartScrub() error       { return nil }
func (p *toy) StopScrub()              {}

func (p *toy) Scrub() store.ScrubStatus { return store.ScrubStatus{} }

func (p *toy) Status() store.PoolStatus {
	st := store.PoolStatus{Thresholds: p.state.Thresholds, Data: p.state.Stored() * block.BlockSize, Capacity: p.drive.Size()}
	st.Used = st.Data
	for _, v := range p.state.Volumes {
		st.Provisioned += v.Size
	}
	st.Drives = []store.DriveStatus{{Name: "d1"}, {Name: "d2"}, {Name: "d3"}}
	return st
}

func (p *toy) SetThresholds(percent []int) error {
	return p.log(storetest.SetThresholds{Percent: percent}, true)
}

func (p *toy) AddDrive(store.NamedDrive) error { return nil }
func (p *toy) EvacuateDrive(string) error      { return fault.New(fault.Full, "a toy keeps its drives") }

func (p *toy) RemoveDrive(string) error { return fault.New(fault.Full, "a toy keeps its drives") }

func (p *toy) CreateVolume(spec store.VolumeSpec) (store.VolumeStatus, error) {
	if p.state.Volumes[spec.Name] != nil {
		return store.VolumeStatus{}, fault.New(fault.Exists, "exists")
	}
	id := p.opt.NewID()
	return store.VolumeStatus{ID: id}, p.log(storetest.CreateVolume{Spec: spec, ID: id}, true)
}

func (p *toy) ChangeVolume(name string, c store.VolumeChange) (store.VolumeStatus, error) {
	op := storetest.ChangeVolume{Volume: name, Change: c}
	if p.flaw == forgetsRename && c.Name != nil {
		op.Apply(p.state, p.next)
		return store.VolumeStatus{}, nil
	}
	return store.VolumeStatus{}, p.log(op, true)
}

func (p *toy) DeleteVolume(name string, withSnapshots bool) error {
	v := p.state.Volumes[name]
	busy := p.open[name] > 0 || len(v.Snapshots) > 0 && !withSnapshots
	for _, s := range v.Snapshots {
		busy = busy || len(p.state.Clones(s.Key)) > 0
	}
	if busy {
		return fault.New(fault.Busy, "in use")
	}
	return p.log(storetest.DeleteVolume{Volume: name}, true)
}

func (p *toy) Volumes() (out []store.VolumeStatus) {
	for _, name := range p.state.Names() {
		st, _ := p.Volume(name)
		out = append(out, st)
	}
	return out
}

func (p *toy) Volume(name string) (store.VolumeStatus, error) {
	v := p.state.Volumes[name]
	origin := ""
	for _, o := range p.state.Volumes {
		for _, s := range o.Snapshots {
			if s.Key == v.Origin {
				origin = o.Name + "@" + s.Name
			}
		}
	}
	return store.VolumeStatus{
		ID: v.ID, Name: name, Size: v.Size, WriteCache: v.WriteCache, ReadOnly: v.ReadOnly, Origin: origin, Snapshots: len(v.Snapshots),
		Referenced: int64(len(v.Content)) * block.BlockSize, Exclusive: p.own(v.Content),
	}, nil
}

// own counts as the model does: the judge of space is tried on the real store.
func (p *toy) own(c storetest.Content) int64 { return p.state.Own(c) * block.BlockSize }

func (p *toy) CreateSnapshot(volume, name string) (store.SnapshotStatus, error) {
	return store.SnapshotStatus{}, p.log(storetest.CreateSnapshot{Volume: volume, Name: name}, true)
}

func (p *toy) Snapshots(volume string) (out []store.SnapshotStatus, err error) {
	for _, s := range p.state.Volumes[volume].Snapshots {
		out = append(out, store.SnapshotStatus{
			Volume: volume, Name: s.Name, Size: s.Size, Clones: p.state.Clones(s.Key),
			Referenced: int64(len(s.Content)) * block.BlockSize, Exclusive: p.own(s.Content),
		})
	}
	return out, nil
}

func (p *toy) DeleteSnapshot(volume, name string) error {
	if len(p.state.Clones(p.state.Volumes[volume].Snapshot(name).Key)) > 0 {
		return fault.New(fault.Busy, "in use")
	}
	return p.log(storetest.DeleteSnapshot{Volume: volume, Name: name}, true)
}

func (p *toy) Rollback(volume, snapshot string) error {
	return p.log(storetest.Rollback{Volume: volume, Name: snapshot}, true)
}

func (p *toy) Clone(volume, snapshot, name string) (store.VolumeStatus, error) {
	id := p.opt.NewID()
	return store.VolumeStatus{ID: id}, p.log(storetest.Clone{Volume: volume, Snapshot: snapshot, Name: name, ID: id}, true)
}

func (p *toy) Changed(volume, from, to string, emit func(store.Range) bool) error {
	v := p.state.Volumes[volume]
	old, cur := storetest.Content{}, v.Content
	if s := v.Snapshot(from); s != nil {
		old = s.Content
	}
	if s := v.Snapshot(to); s != nil {
		cur = s.Content
	}
	blocks := maps.Clone(old)
	maps.Copy(blocks, cur)
	for _, b := range slices.Sorted(maps.Keys(blocks)) {
		if old[b].Block != cur[b].Block && !emit(store.Range{Offset: b * block.BlockSize, Length: block.BlockSize}) {
			break
		}
	}
	return nil
}

func (p *toy) Position() store.LSN {
	return store.LSN(len(p.lives.began)<<positionLife | int(p.next-1))
}

// operation returns the last operation that is not after a position.
func (p *toy) operation(at store.LSN) uint64 {
	n := uint64(at & (1<<positionLife - 1))
	if p.flaw == reusesLSNs {
		return n
	}
	for _, began := range p.lives.began[at>>positionLife:] {
		n = min(n, began-1)
	}
	return n
}

func (p *toy) ChangedSince(volume string, since store.LSN, emit func(store.Range) bool) error {
	v, at := p.state.Volumes[volume], p.operation(since)
	if v.Replaced > at || p.flaw == saysAll {
		emit(store.Range{Length: v.Size})
		return nil
	}
	for _, b := range slices.Sorted(maps.Keys(v.Touched)) {
		_, data := v.Content[b]
		if v.Touched[b] <= at || p.flaw == missesTrims && !data {
			continue
		}
		if !emit(store.Range{Offset: b * block.BlockSize, Length: block.BlockSize}) {
			break
		}
	}
	return nil
}

func (p *toy) SetBase(volume string, base store.LSN) error {
	op := storetest.SetBase{Volume: volume, Base: base}
	if p.flaw == losesBase {
		op.Apply(p.state, p.next)
		return nil
	}
	return p.log(op, false)
}

func (p *toy) ClearBase(volume string) error {
	return p.log(storetest.ClearBase{Volume: volume}, false)
}

func (p *toy) Base(volume string) (store.LSN, bool) {
	v := p.state.Volumes[volume]
	return v.Base, v.Tracked
}

func (p *toy) OpenVolume(name string) (storetest.Device, error) {
	p.open[name]++
	return &toyDevice{pool: p, volume: p.state.Volumes[name]}, nil
}

func (p *toy) OpenSnapshot(volume, name string) (storetest.Device, error) {
	v := p.state.Volumes[volume]
	return &toyDevice{pool: p, volume: v, snap: v.Snapshot(name)}, nil
}

// toyDevice is an open volume of a toy.
type toyDevice struct {
	pool   *toy
	volume *storetest.Volume
	snap   *storetest.Snapshot
}

func (d *toyDevice) history() storetest.History {
	if d.snap != nil {
		return d.snap.History
	}
	return d.volume.History
}

func (d *toyDevice) Size() int64 {
	if d.snap != nil {
		return d.snap.Size
	}
	return d.volume.Size
}

func (d *toyDevice) check(off, n int64, writes bool) error {
	if writes && d.volume.ReadOnly {
		return fault.New(fault.ReadOnly, "read-only")
	}
	if off < 0 || n < 0 || (off|n)%block.SectorSize != 0 || off+n > d.Size() {
		return fault.New(fault.Invalid, "out of bounds")
	}
	return nil
}

func (d *toyDevice) log(op storetest.Op, flags block.Flags) error {
	return d.pool.log(op, !d.volume.WriteCache || flags&block.FUA != 0)
}

func (d *toyDevice) ReadAt(p []byte, off int64) error {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return err
	}
	storetest.Encode(p, d.history().Read(off, int64(len(p))))
	return nil
}

func (d *toyDevice) TryReadAt(p []byte, off int64) bool { return d.ReadAt(p, off) == nil }

func (d *toyDevice) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return err
	}
	stamps, err := storetest.Decode(p)
	if err != nil {
		return err
	}
	return d.log(storetest.Write{Volume: d.volume.Name, Offset: off, Stamps: stamps}, flags)
}

func (d *toyDevice) Flush() error {
	if d.pool.flaw == flushesNot {
		return nil
	}
	return d.pool.drive.Flush()
}

func (d *toyDevice) Trim(off, n int64) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	return d.log(storetest.Clear{Volume: d.volume.Name, Offset: off, Length: n}, 0)
}

func (d *toyDevice) Zero(off, n int64, flags block.Flags) error {
	if err := d.check(off, n, true); err != nil {
		return err
	}
	return d.log(storetest.Clear{Volume: d.volume.Name, Offset: off, Length: n}, flags)
}

func (d *toyDevice) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	is := make([]byte, len(old))
	if err := d.ReadAt(is, off); err != nil {
		return 0, err
	}
	if at := firstDifference(is, old); at >= 0 {
		return at, nil
	}
	return -1, d.WriteAt(new, off, flags)
}

func (d *toyDevice) CopyFrom(dst int64, from storetest.Device, src, n int64, flags block.Flags) error {
	f := from.(*toyDevice)
	if err := d.check(dst, n, true); err != nil {
		return err
	}
	if err := f.check(src, n, false); err != nil {
		return err
	}
	op := storetest.Copy{Volume: d.volume.Name, Offset: dst, From: f.volume.Name, FromOffset: src, Length: n}
	if f.snap != nil {
		op.FromSnapshot = f.snap.Name
	}
	return d.log(op, flags)
}

func (d *toyDevice) Mapped(off, limit int64) (mapped bool, n int64, err error) {
	c := d.history().Content
	first := off / block.BlockSize
	_, mapped = c[first]
	if d.Size() > 64<<20 && !mapped { // leap over the holes of a huge volume
		next := d.Size() / block.BlockSize
		for b := range c {
			if b > first {
				next = min(next, b)
			}
		}
		return false, min(limit, (next-first)*block.BlockSize), nil
	}
	for n = block.BlockSize; n < limit; n += block.BlockSize {
		if _, m := c[first+n/block.BlockSize]; m != mapped {
			break
		}
	}
	return mapped, n, nil
}

func (d *toyDevice) SetWriteCache(on bool) error {
	_, err := d.pool.ChangeVolume(d.volume.Name, store.VolumeChange{WriteCache: &on})
	return err
}

func (d *toyDevice) Attribute(key string) ([]byte, error) {
	return []byte(d.volume.Attributes[key]), nil
}

func (d *toyDevice) SetAttribute(key string, value []byte) error {
	return d.pool.log(storetest.SetAttribute{Volume: d.volume.Name, Key: key, Value: string(value)}, true)
}

func (d *toyDevice) Close() error {
	if d.snap == nil {
		d.pool.open[d.volume.Name]--
	}
	return nil
}
