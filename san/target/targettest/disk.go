// Package targettest has what tests of a transport need: a RAM disk behind
// scsi.Port that does just enough for real initiators, and a raw PDU client
// that can break every rule.
package targettest

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"steadfast/internal/bufpool"
	"steadfast/scsi"
)

// BlockSize is the RAM disk's logical block in bytes.
const BlockSize = 512

// Disk is a RAM disk with LUN 0, shared by all nexuses.
type Disk struct {
	Data []byte
	// Slow makes every READ and WRITE take the Execute path, as a disk does.
	Slow atomic.Bool
	// Gate, if set, is called by Execute before a command touches data; it
	// may block.
	Gate func(*scsi.Task)
	// Marked, if set, is called by Manage when the tasks it ends are marked
	// and it is about to wait for them.
	Marked func()
	// Deny, if set, refuses a nexus.
	Deny func(scsi.Nexus) error

	Opened, Closed, Begun, Ended atomic.Int64
	Landed                       atomic.Int64 // writes that changed Data

	mu sync.RWMutex
}

// NewDisk returns a disk of size bytes.
func NewDisk(size int) *Disk { return &Disk{Data: bufpool.Aligned(size)} }

// OpenPort implements scsi.PortOpener.
func (d *Disk) OpenPort(n scsi.Nexus, _ scsi.Events) (scsi.Port, error) {
	if d.Deny != nil {
		if err := d.Deny(n); err != nil {
			return nil, err
		}
	}
	d.Opened.Add(1)
	p := &port{d: d, tasks: make(map[*scsi.Task]*bool)}
	p.left.L = &p.mu
	return p, nil
}

// port is one nexus. Its task set is a map: dumb and right.
type port struct {
	d *Disk

	mu    sync.Mutex
	left  sync.Cond
	tasks map[*scsi.Task]*bool // value: aborted
}

// Begin implements scsi.Port.
func (p *port) Begin(t *scsi.Task) {
	p.d.Begun.Add(1)
	p.mu.Lock()
	p.tasks[t] = new(bool)
	p.mu.Unlock()
}

// end takes t out of the set and reports whether it was aborted.
func (p *port) end(t *scsi.Task) bool {
	p.d.Ended.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	aborted := p.tasks[t]
	delete(p.tasks, t)
	p.left.Broadcast()
	return aborted != nil && *aborted
}

// TryExecute implements scsi.Port: everything but data on a slow disk.
func (p *port) TryExecute(t *scsi.Task) bool {
	switch op := t.CDB[0]; op {
	case 0x28, 0x88, 0x2a, 0x8a:
		if p.d.Slow.Load() || p.d.Gate != nil || op&0x0f == 0x0a {
			return false
		}
	}
	p.d.execute(t)
	p.end(t)
	return true
}

// Execute implements scsi.Port.
func (p *port) Execute(t *scsi.Task) bool {
	if p.d.Gate != nil {
		p.d.Gate(t)
	}
	p.mu.Lock()
	aborted := *p.tasks[t]
	p.mu.Unlock()
	if !aborted {
		p.d.execute(t)
	}
	return !p.end(t)
}

// Drop implements scsi.Port.
func (p *port) Drop(t *scsi.Task) { p.end(t) }

// Manage implements scsi.Port.
func (p *port) Manage(f scsi.Function, lun scsi.LUN, tag uint32) scsi.FunctionResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	var hit []*scsi.Task
	for t, aborted := range p.tasks {
		if f == scsi.AbortTask && t.Tag != tag || f <= scsi.LogicalUnitResetFunction && t.LUN != lun {
			continue
		}
		*aborted = true
		hit = append(hit, t)
	}
	if p.d.Marked != nil {
		p.d.Marked()
	}
	if f == scsi.AbortTask && len(hit) == 0 {
		return scsi.TaskDoesNotExist
	}
	for _, t := range hit {
		for p.tasks[t] != nil {
			p.left.Wait()
		}
	}
	return scsi.FunctionComplete
}

// Close implements scsi.Port.
func (p *port) Close() {
	p.mu.Lock()
	for _, aborted := range p.tasks {
		*aborted = true
	}
	for len(p.tasks) > 0 {
		p.left.Wait()
	}
	p.mu.Unlock()
	p.d.Closed.Add(1)
}

// execute performs t.
func (d *Disk) execute(t *scsi.Task) {
	t.Status = scsi.Good
	cdb := t.CDB
	if t.LUN != 0 && cdb[0] != 0xa0 && cdb[0] != 0x12 {
		d.check(t, 0x5, 0x25, 0x00)
		return
	}
	switch cdb[0] {
	case 0x00, 0x35, 0x91, 0x1b: // TEST UNIT READY, SYNCHRONIZE CACHE, START STOP UNIT
	case 0x12:
		d.inquiry(t)
	case 0x1a: // MODE SENSE(6): a header and no page
		t.DataIn = cut([]byte{3, 0, 0x10, 0}, int(cdb[4]))
	case 0x25:
		b := binary.BigEndian.AppendUint32(nil, uint32(len(d.Data)/BlockSize-1))
		t.DataIn = binary.BigEndian.AppendUint32(b, BlockSize)
	case 0x9e:
		b := binary.BigEndian.AppendUint64(nil, uint64(len(d.Data)/BlockSize-1))
		b = binary.BigEndian.AppendUint32(b, BlockSize)
		t.DataIn = cut(append(b, make([]byte, 20)...), int(binary.BigEndian.Uint32(cdb[10:])))
	case 0xa0: // REPORT LUNS: LUN 0
		t.DataIn = cut([]byte{0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int(binary.BigEndian.Uint32(cdb[6:])))
	case 0x28:
		d.read(t, int64(binary.BigEndian.Uint32(cdb[2:])), int64(binary.BigEndian.Uint16(cdb[7:])))
	case 0x88:
		d.read(t, int64(binary.BigEndian.Uint64(cdb[2:])), int64(binary.BigEndian.Uint32(cdb[10:])))
	case 0x2a:
		d.write(t, int64(binary.BigEndian.Uint32(cdb[2:])), int64(binary.BigEndian.Uint16(cdb[7:])))
	case 0x8a:
		d.write(t, int64(binary.BigEndian.Uint64(cdb[2:])), int64(binary.BigEndian.Uint32(cdb[10:])))
	default:
		d.check(t, 0x5, 0x20, 0x00)
	}
}

// inquiry answers the standard data and the pages initiators look at.
func (d *Disk) inquiry(t *scsi.Task) {
	n := int(binary.BigEndian.Uint16(t.CDB[3:]))
	if t.CDB[1]&1 == 0 {
		b := make([]byte, 36)
		b[2], b[3], b[4], b[7] = 6, 2, 31, 2
		copy(b[8:], "STEADFSTRAM DISK        0001")
		t.DataIn = cut(b, n)
		return
	}
	switch t.CDB[2] {
	case 0x00:
		t.DataIn = cut([]byte{0, 0, 0, 2, 0, 0x83}, n)
	case 0x83:
		t.DataIn = cut([]byte{0, 0x83, 0, 12, 1, 3, 0, 8, 0x60, 1, 2, 3, 4, 5, 6, 7}, n)
	default:
		d.check(t, 0x5, 0x24, 0x00)
	}
}

func cut(b []byte, n int) []byte { return b[:min(len(b), n)] }

func (d *Disk) check(t *scsi.Task, key, asc, ascq byte) {
	t.Status = scsi.CheckCondition
	t.Sense = []byte{0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0}
}

func (d *Disk) inRange(t *scsi.Task, lba, n int64) bool {
	blocks := int64(len(d.Data) / BlockSize)
	if lba < 0 || n > blocks || lba > blocks-n {
		d.check(t, 0x5, 0x21, 0x00)
		return false
	}
	return true
}

func (d *Disk) read(t *scsi.Task, lba, n int64) {
	if !d.inRange(t, lba, n) {
		return
	}
	buf := bufpool.Get(int(n * BlockSize))
	d.mu.RLock()
	copy(buf, d.Data[lba*BlockSize:])
	d.mu.RUnlock()
	t.DataIn = buf
	t.Release = func() { bufpool.Put(buf) }
}

func (d *Disk) write(t *scsi.Task, lba, n int64) {
	t.Required = int(n * BlockSize)
	if !d.inRange(t, lba, n) {
		return
	}
	d.mu.Lock()
	copy(d.Data[lba*BlockSize:], t.DataOut[:min(len(t.DataOut), t.Required)])
	d.mu.Unlock()
	d.Landed.Add(1)
}

// Peek returns a copy of n bytes at off.
func (d *Disk) Peek(off, n int) []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return append([]byte(nil), d.Data[off:off+n]...)
}
