package pair

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"steadfast/block"
	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/drive/drivetest"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
	"steadfast/san/statevol"
	"steadfast/san/store"
)

// The group's volumes: the state volume, and those that initiators see.
const (
	stateVolume = 0
	dataVolumes = 2 // 1 to 2
	volumeSize  = 8 << 20
	driveSize   = 32 << 20
	keptName    = "before-resync"
)

// volumeNames are the group's volumes in each node's pool.
var volumeNames = map[uint32]string{0: "state", 1: "one", 2: "two"}

// pool is a node's real pool, on a drive that outlives the node's lives.
type pool struct {
	world *world
	index int
	power *drivetest.World
	disk  *drivetest.Disk
	more  *drivetest.Disk // that was added when the faults were over
	rand  *rand.Rand
	ids   uint64
	wall  time.Duration // how far the node's wall clock is off

	*store.Pool
	volumes *mirrorio.PoolStore
	kept    bool
	views   map[string]*store.Volume // open for the judges
	slow    time.Duration            // at most so long its answers wait
	late    []string                 // snapshots that are to be deleted when nobody reads them
	marks   []mark
	scrubs  bool
	spoilt  bool    // its map cannot be read
	lied    int     // writes that the drive lost or put elsewhere
	data    []int64 // blocks of the drive that hold what clients wrote
	fresh   []int64 // likewise, as of looked: they are too new
	looked  int     // witnesses then
	next    instant // look not before
	// witnesses counts chunks of the log that surely are stable.
	witnesses int
	idle      store.LSN // position at the last idle maintenance
	idles     int
}

// mark is a place where the drive was damaged.
type mark struct {
	block int64
	bit   int
	was   []byte
}

func newPool(w *world, i int) *pool {
	p := &pool{world: w, index: i, rand: rand.New(rand.NewPCG(w.rand.Uint64(), uint64(i)))}
	p.renew()
	return p
}

// options are the pool's on this node: its clock is a wall clock, which steps.
func (p *pool) options() store.Options {
	return store.Options{
		CacheBytes: 16 << 20,
		Now:        func() store.Instant { return store.Instant(1e18 + int64(p.world.now) + int64(p.wall)) },
		NewID: func() (id store.ID) {
			p.ids++
			binary.LittleEndian.PutUint64(id[:], p.ids<<8|uint64(p.index+1))
			id[15] = 1
			return id
		},
	}
}

func (p *pool) drives() []store.NamedDrive {
	list := []store.NamedDrive{{Name: p.disk.Name(), Drive: p.disk.Open()}}
	if p.more != nil {
		list = append(list, store.NamedDrive{Name: p.more.Name(), Drive: p.more.Open()})
	}
	return list
}

// grow adds a drive: a pool that is full waits for that, or for something to be
// deleted, and so does a resync.
func (p *pool) grow() {
	p.more = p.power.NewDisk("more-"+string(memberOf(p.index)), 2*driveSize, p.rand)
	if err := p.AddDrive(store.NamedDrive{Name: p.more.Name(), Drive: p.more.Open()}); err != nil {
		p.world.note("%s cannot add a drive: %v", memberOf(p.index), err)
		p.more = nil
	}
}

// calm implements medium.
func (p *pool) calm() {
	p.slow = 0
	p.disk.SetSpace(-1)
	p.disk.Planned()
	p.power.Endless()
}

// renew implements medium: an empty pool on a new drive, with empty volumes.
func (p *pool) renew() {
	p.power, p.more = drivetest.NewWorld(), nil
	p.disk = p.power.NewDisk("drive-"+string(memberOf(p.index)), driveSize, p.rand)
	p.spoilt = false
	p.lied, p.marks, p.data, p.fresh, p.kept, p.volumes = 0, nil, nil, nil, false, nil
	made, err := store.Create("pool", p.options(), p.drives())
	if err != nil {
		p.world.fail("create a pool: %v", err)
		return
	}
	for n := range uint32(dataVolumes + 1) {
		size := int64(volumeSize)
		if n == stateVolume {
			size = statevol.Size
		}
		if _, err := made.CreateVolume(store.VolumeSpec{Name: volumeNames[n], Size: size, WriteCache: true}); err != nil {
			p.world.fail("create a volume: %v", err)
		}
	}
	p.Pool = made
	p.power.Kill(p.rand)
}

// begin implements medium: the pool is opened on what the drive has.
func (p *pool) begin(n *node) (kept mirror.Position, ok bool) {
	w := p.world
	if p.spoilt {
		if !p.unopened(n, fault.New(fault.Corrupt, "its map cannot be read")) {
			return 0, false
		}
		p.spoilt = false
	}
	for range 20 {
		opened, err := store.Open(p.options(), p.drives())
		if p.power.Ended() {
			w.count.tornOpen++
			p.endNow(w.chance(0.5))
			continue
		}
		if err != nil {
			if !p.unopened(n, err) {
				return 0, false
			}
			continue
		}
		p.Pool, p.views, p.late = opened, nil, nil
		if p.volumes, kept, err = mirrorio.OpenStore(opened, volumeNames); err != nil {
			w.fail("%s cannot open its volumes: %v", memberOf(n.index), err)
		}
		p.kept = p.hasSnapshot(keptName)
		return kept, true
	}
	w.fail("%s cannot open its pool, for it dies again and again", memberOf(p.index))
	return 0, false
}

// unopened is what becomes of a pool that cannot be opened for its drive is
// damaged: the node gets a new one, if the other has the group to itself by now.
// Else the damage is undone, as far as that is possible; or it waits for the other.
func (p *pool) unopened(n *node, err error) (again bool) {
	w := p.world
	w.note("%s cannot open its pool: %v", memberOf(n.index), err)
	if len(p.marks) == 0 && p.lied == 0 || !fault.Is(err, fault.Corrupt) {
		w.fail("%s cannot open its pool: %v", memberOf(n.index), err)
		return false
	}
	w.count.unopened++
	if o := w.nodes[1-n.index]; o.up {
		if at := o.mirror.Standing(); at.Role == group.Owner && at.Serving && len(at.Others) == 0 {
			w.count.replaced++
			w.note("%s gets an empty pool", memberOf(n.index))
			p.renew()
			return w.failure == ""
		}
	}
	if len(p.marks) > 0 {
		p.repair()
		return true
	}
	return false
}

// end implements medium.
func (p *pool) end(power bool) {
	p.slow, p.fresh = 0, nil
	p.disk.Planned()
	p.endNow(power)
	if w := p.world; !w.calm && w.chance(0.1) { // and in the middle of the recovery
		p.power.EndAfter(1 + p.rand.IntN(10))
	}
}

func (p *pool) endNow(power bool) {
	if power {
		p.power.PowerLoss(p.rand)
	} else {
		p.power.Kill(p.rand)
	}
}

func (p *pool) ended() bool { return p.power.Ended() }

func (p *pool) breakNext() {
	p.disk.Plan([]drivetest.Fault{drivetest.FailWrite, drivetest.FailFlush}[p.rand.IntN(2)], 1)
}

func (p *pool) slowDown(most time.Duration) { p.slow = most }

// squeeze implements medium: the filesystem below has little left.
func (p *pool) squeeze(on bool) {
	if !on {
		p.disk.SetSpace(-1)
		return
	}
	p.world.count.squeezed++
	p.disk.SetSpace(p.disk.Space() + p.rand.Int64N(64)*block.BlockSize)
}

func (p *pool) delay(flush bool) time.Duration {
	w := p.world
	d := w.between(30*time.Microsecond, 300*time.Microsecond)
	if flush {
		d += w.between(0, time.Millisecond)
	}
	if p.slow > 0 {
		d += w.between(0, p.slow)
	}
	return d
}

// failed breaks the node when an error is of its drive.
func (p *pool) failed(n *node, doing string, err error) bool {
	if err == nil || p.power.Ended() {
		return false
	}
	p.world.note("%s cannot %s: %v", memberOf(p.index), doing, err)
	if !n.broken {
		n.broken = true
		p.world.count.driveFailures++
	}
	return true
}

// change implements medium, as mirrorio does it.
func (p *pool) change(n *node, e mirror.Apply) mirror.Applied {
	if e.Op.Lists() {
		return p.followList(n, e)
	}
	c := e.Op.Payload.(*mirrorio.Change)
	a := mirror.Applied{ID: e.ID}
	if c.Kind == mirrorio.Act {
		return p.act(n, e, c)
	}
	var err error
	if e.Op.Copies() && c.Kind == mirrorio.Data {
		err = p.copies(e.Op.Volume, c, e.Op.Durable)
	} else {
		err = p.volumes.Apply(e.Op.Volume, c, e.Op.Durable)
	}
	w := p.world
	w.note("%s stores %s, durable %t, kind %d: %s", memberOf(p.index), sketch(e.Op.Volume, c), e.Op.Durable, e.Op.Kind, short(err))
	switch {
	case fault.Is(err, fault.Full):
		w.count.full++
		a.Full = true
	case fault.Is(err, fault.Corrupt):
		w.count.partials++
		a.Bad = p.locate(&e.Op)
	default:
		if a.Failed = p.failed(n, "change", err); err == nil && e.Op.Durable && c.Kind == mirrorio.Data {
			p.witnesses++
		}
	}
	a.Position = p.volumes.Position()
	return a
}

// copies stores what the other node has; zeros take no room.
func (p *pool) copies(volume uint32, c *mirrorio.Change, durable bool) error {
	for at := 0; at < len(c.Data); at += block.BlockSize {
		b := c.Data[at:min(at+block.BlockSize, len(c.Data))]
		part := &mirrorio.Change{Kind: mirrorio.Data, Off: c.Off + int64(at), Length: int64(len(b)), Data: b}
		if blank(b) {
			part.Kind, part.Data = mirrorio.Zero, nil
		}
		if err := p.volumes.Apply(volume, part, durable); err != nil {
			return err
		}
	}
	return nil
}

var zeros [block.BlockSize]byte

func blank(b []byte) bool {
	for ; len(b) > 0; b = b[min(len(b), len(zeros)):] {
		if n := min(len(b), len(zeros)); !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
	}
	return true
}

// load implements medium.
func (p *pool) load(n *node, e mirror.Load) mirror.Applied {
	switch {
	case e.Op.Lists():
		return p.listSnapshots(n, e)
	case e.Op.Moment != 0:
		return p.loadSnapshot(n, e)
	}
	a := mirror.Applied{ID: e.ID}
	if k := n.asks[e.ID]; k != nil && k.call != nil && (e.Op.Kind == mirror.Read || e.Op.Kind == mirror.Compare) {
		p.loadFor(n, e, k.call, &a)
		return a
	}
	c := &mirrorio.Change{Kind: mirrorio.Data, Off: int64(e.Op.Block) * block.BlockSize, Length: int64(e.Op.Count) * block.BlockSize}
	c.Data = make([]byte, c.Length)
	err := p.volumes.Read(e.Op.Volume, c.Data, c.Off)
	switch {
	case fault.Is(err, fault.Corrupt):
		a.Bad = p.locate(&e.Op)
		return a
	case p.failed(n, "read for the other node", err):
		a.Failed = true
	case blank(c.Data):
		c.Kind, c.Data = mirrorio.Zero, nil
	}
	a.Payload = c
	return a
}

// loadFor reads for a client, or compares.
func (p *pool) loadFor(n *node, e mirror.Load, c *call, a *mirror.Applied) {
	err := p.volumes.Read(e.Op.Volume, c.read, c.off)
	c.err, c.mismatch = err, -1
	for i := range c.expected {
		if c.read[i] != c.expected[i] {
			c.mismatch = int64(i)
			break
		}
	}
	a.Differs = c.expected != nil && (err != nil || c.mismatch >= 0)
	if fault.Is(err, fault.Corrupt) {
		a.Bad = p.locate(&e.Op)
		return
	}
	a.Failed = p.failed(n, "read", err)
}

// locate finds the blocks of an operation that cannot be read.
func (p *pool) locate(op *mirror.Op) mirror.Range {
	b := bufpool.Get(block.BlockSize)
	defer bufpool.Put(b)
	bad := mirror.Range{Volume: op.Volume}
	for at := op.Block; at < op.Block+op.Count; at++ {
		if fault.Is(p.volumes.Read(op.Volume, b, int64(at)*block.BlockSize), fault.Corrupt) {
			if bad.Count == 0 {
				bad.Block = at
			}
			bad.Count = at + 1 - bad.Block
		}
	}
	if bad.Count == 0 {
		bad.Block, bad.Count = op.Block, op.Count
	}
	return bad
}

func (p *pool) sync(n *node) bool { return p.failed(n, "flush", p.volumes.Flush()) }

func (p *pool) list(n *node, e mirror.List) []mirror.Range {
	ranges, err := p.volumes.Changed(e.Since, e.Whole)
	if p.failed(n, "list changes", err) && !fault.Is(err, fault.Failed) {
		p.world.fail("%s cannot list its changes: %v", memberOf(p.index), err)
	}
	return ranges
}

func (p *pool) save(at mirror.Position) {
	if err := p.volumes.SavePosition(at); err != nil && !p.power.Ended() {
		p.world.note("%s cannot keep position %d: %v", memberOf(p.index), at, err)
	}
}

// act does a barrier's action: a snapshot of all volumes, or its end.
func (p *pool) act(n *node, e mirror.Apply, c *mirrorio.Change) mirror.Applied {
	w, a := p.world, mirror.Applied{ID: e.ID}
	verb, name, _ := strings.Cut(string(c.Data), " ")
	var err error
	switch {
	case e.Op.Undo && verb == "take":
		w.count.undone++
		err = p.dropSoon(name)
	case e.Op.Undo:
	case verb == "take" && !w.calm && !p.hasSnapshot(name) && w.chance(0.05):
		err = fault.New(fault.Limit, "no more snapshots here") // for whatever reason
	case verb == "take":
		err = p.takeSnapshots(name)
	default:
		err = p.dropSoon(name)
	}
	w.note("%s does %q, undo %t: %s", memberOf(p.index), c.Data, e.Op.Undo, short(err))
	if !e.Op.Undo && refuses(err) {
		a.Full, a.Payload = true, "no room"
		return a
	}
	a.Position, a.Failed = p.volumes.Position(), p.failed(n, "act", err)
	return a
}

// takeSnapshots takes a snapshot of each data volume, or of none.
func (p *pool) takeSnapshots(name string) error {
	var list []store.NewSnapshot
	for v := uint32(1); v <= dataVolumes; v++ {
		if !slices.Contains(p.snapshots(volumeNames[v]), name) {
			list = append(list, store.NewSnapshot{Volume: volumeNames[v], SnapshotSpec: store.SnapshotSpec{Name: name, Created: store.Instant(momentOf(name))}})
		}
	}
	return p.CreateSnapshots(list...)
}

// dropSnapshots deletes a snapshot of each data volume that has it, or of none.
func (p *pool) dropSnapshots(name string) error {
	var list []store.SnapshotName
	for v := uint32(1); v <= dataVolumes; v++ {
		if slices.Contains(p.snapshots(volumeNames[v]), name) {
			list = append(list, store.SnapshotName{Volume: volumeNames[v], Name: name})
		}
	}
	return p.DeleteSnapshots(list...)
}

// dropSoon is dropSnapshots, now or when nobody reads it any more; see node/ha.
func (p *pool) dropSoon(name string) error {
	err := p.dropSnapshots(name)
	if fault.Is(err, fault.Busy) {
		p.world.count.inUse++
		p.late = append(p.late, name)
		return nil
	}
	return err
}

// dropLate deletes what could not be deleted before. The owner has the other node do so,
// too: a resync may have given it that.
func (p *pool) dropLate(n *node) {
	list := p.late
	p.late = nil
	for _, name := range list {
		switch err := p.dropSnapshots(name); {
		case fault.Is(err, fault.Busy):
			p.late = append(p.late, name)
		case err == nil && n.service != nil && n.service.open:
			p.world.barrier(n.service, "drop "+name, func(error) {})
		}
	}
}

// readSnapshot has somebody read a snapshot for a while, as a comparison does: it
// cannot be deleted meanwhile.
func (p *pool) readSnapshot(n *node) {
	names := slices.DeleteFunc(p.snapshots(volumeNames[dataVolumes]), func(name string) bool { return name == keptName })
	if len(names) == 0 {
		return
	}
	v, err := p.OpenSnapshot(volumeNames[dataVolumes], names[p.rand.IntN(len(names))])
	if err == nil {
		n.later(p.world.between(10*time.Millisecond, 1500*time.Millisecond), func() { _ = v.Close() }) // of what only reads
	}
}

func (p *pool) hasSnapshot(name string) bool {
	return slices.Contains(p.snapshots(volumeNames[1]), name)
}

// snapshots lists a volume's, but for what a resync keeps.
func (p *pool) snapshots(volume string) (names []string) {
	list, err := p.Snapshots(volume)
	if err != nil {
		return nil
	}
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

func (p *pool) keepState() bool {
	if !p.kept {
		p.kept = p.takeSnapshots(keptName) == nil
	}
	return p.kept
}

func (p *pool) stateKept() bool { return p.kept }

func (p *pool) dropState() {
	if err := p.dropSnapshots(keptName); err == nil {
		p.kept = false
	}
}

// maintain lends the pool time, and has what its scrub found healed.
func (p *pool) maintain(n *node) {
	for range 4 {
		more, err := p.Maintain()
		if n.ended() {
			return
		}
		if err != nil {
			p.fresh = nil
			p.world.note("%s maintains: %v", memberOf(p.index), err)
		}
		if err == nil && !more {
			p.rests()
		}
		if err != nil || !more {
			break
		}
	}
	if !p.scrubs {
		return
	}
	st := p.Scrub()
	if st.Running {
		return
	}
	p.scrubs = false
	p.world.count.scrubs++
	for _, bad := range st.Corrupt {
		for number, name := range volumeNames {
			if name == bad.Volume && n.up {
				n.step(mirror.Heal{What: mirror.Range{Volume: number, Block: uint64(bad.Offset / block.BlockSize), Count: 1}})
			}
		}
	}
}

// look finds blocks of the drive that may be damaged: those with something stable
// behind them in the log. Its last chunk, damaged, would be taken for one that was
// torn: nothing could tell that it had been there.
func (p *pool) look() {
	w := p.world
	if p.fresh != nil && p.witnesses > p.looked {
		p.data, p.fresh = p.fresh, nil
	}
	if p.fresh != nil || !w.nodes[p.index].up || w.now < p.next {
		return
	}
	p.fresh, p.looked, p.next = []int64{}, p.witnesses, w.now.add(300*time.Millisecond)
	for _, b := range p.disk.Written() {
		if isData(p.disk.Block(b)) {
			p.fresh = append(p.fresh, b)
		}
	}
}

// rests notes that the pool had nothing to do: when it had nothing for a while, it
// has sealed its log.
func (p *pool) rests() {
	if at := p.Position(); at != p.idle {
		p.idle, p.idles = at, 0
	} else if p.idles++; p.idles == 2 {
		p.witnesses++
	}
}

// rot implements medium: bits of blocks that hold what clients wrote flip, or the
// drive cannot read such blocks.
func (p *pool) rot() {
	if w := p.world; !w.inSync() && !w.chance(0.1) {
		return // what nobody else has cannot be healed
	}
	p.look()
	for range 1 + p.rand.IntN(3) {
		if len(p.data) == 0 {
			return
		}
		m := mark{block: p.data[p.rand.IntN(len(p.data))], bit: p.rand.IntN(8 * block.BlockSize)}
		if !isData(p.disk.Block(m.block)) {
			continue
		}
		p.world.count.flips++
		if p.rand.IntN(4) == 0 {
			m.was = p.disk.Block(m.block)
			p.disk.MakeUnreadable(m.block)
			m.bit = -1
		} else {
			p.disk.FlipBit(m.block, m.bit)
			m.was = p.disk.Block(m.block)
		}
		p.marks = append(p.marks, m)
		p.world.note("block %d of the drive of %s is damaged", m.block, memberOf(p.index))
	}
}

// repair implements medium: what still is as rot left it becomes what it was.
func (p *pool) repair() {
	for _, m := range slices.Backward(p.marks) {
		switch {
		case !bytes.Equal(p.disk.Block(m.block), m.was):
		case m.bit < 0:
			p.disk.FlipBit(m.block, 0)
			p.disk.FlipBit(m.block, 0)
		default:
			p.disk.FlipBit(m.block, m.bit)
		}
	}
	p.marks = nil
}

// Sectors that clients write are one number again and again, with a tag.
const (
	tag      = 0x5afe << 48
	tagMask  = 0xffff << 48
	sector   = block.SectorSize
	perBlock = block.BlockSize / sector
)

// isData tells whether a block of the drive holds something that a client wrote,
// and else only zeros.
func isData(b []byte) bool {
	any := false
	for at := 0; at < len(b); at += sector {
		v, ok := valueOf(b[at : at+sector])
		if !ok {
			return false
		}
		any = any || v != 0
	}
	return any
}

// fillSector makes a sector of a value.
func fillSector(b []byte, v value) {
	n := uint64(v)
	if v != 0 {
		n |= tag
	}
	for at := 0; at < sector; at += 8 {
		binary.LittleEndian.PutUint64(b[at:], n)
	}
}

// valueOf reads one; ok is false when it is not whole.
func valueOf(b []byte) (v value, ok bool) {
	n := binary.LittleEndian.Uint64(b)
	for at := 8; at < sector; at += 8 {
		if binary.LittleEndian.Uint64(b[at:]) != n {
			return 0, false
		}
	}
	if n != 0 && n&tagMask != tag {
		return 0, false
	}
	return value(n &^ tagMask), true
}

// sketch says what a change does.
func sketch(volume uint32, c *mirrorio.Change) string {
	first := "zeros"
	if len(c.Data) >= sector {
		v, _ := valueOf(c.Data[:sector])
		first = fmt.Sprint(v)
	}
	return fmt.Sprintf("kind %d of volume %d at %d+%d: %s", c.Kind, volume, c.Off/sector, c.Length/sector, first)
}

func short(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}
