package lun

import (
	"bytes"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/scsi"
)

// Limits of one command, as VPD page B0h tells them. Blocks are logical.
const (
	transferMax     = 32768 // 16 MiB
	transferOptimal = 256   // 128 KiB
	compareMax      = 128   // COMPARE AND WRITE
	writeSameMax    = 32768
	unmapMax        = 1 << 20 // 512 MiB
	unmapListMax    = 256
	perPhysical     = block.BlockSize / block.SectorSize
	perPhysicalLog  = 3
)

// quickMax is up to how many bytes a read is served on the transport's own
// goroutine; more would keep it from its other tasks.
const quickMax = 256 << 10

// wasteMax is how many bytes more than the initiator expects a read may
// produce: they are only counted, for the residual, but take memory that no
// budget knows of.
const wasteMax = 1 << 20

// transfer decodes and checks a command's range and protection field.
func (k *task) transfer(maxBlocks uint32) (t scsi.Transfer, check *scsi.Check) {
	t, ok := scsi.DecodeTransfer(k.CDB)
	switch {
	case !ok:
		return t, scsi.InvalidCDB(0, -1)
	case t.Protect != 0:
		return t, scsi.InvalidCDB(1, 7) // no protection information
	case t.Blocks > maxBlocks:
		return t, scsi.InvalidCDB(lengthField(k.CDB), -1)
	}
	return t, k.inRange(t.LBA, uint64(t.Blocks))
}

// lengthField returns where the transfer length begins in a CDB.
func lengthField(cdb []byte) int {
	switch op := scsi.Opcode(cdb[0]); {
	case op == scsi.OpCompareAndWrite:
		return 13
	case op>>5 == 0:
		return 4
	case op>>5 == 4:
		return 10
	case op>>5 == 5:
		return 6
	}
	return 7
}

// inRange checks that n blocks from lba exist; lba may be the capacity when n
// is 0.
func (k *task) inRange(lba, n uint64) *scsi.Check {
	if total := k.itl.unit.blocks.Load(); lba > total || n > total-lba {
		return scsi.OutOfRange(lba)
	}
	return nil
}

// TryExecute implements scsi.Port: it serves READ from memory, and TEST UNIT
// READY. It must stay cheap, and must not allocate.
func (p *port) TryExecute(t *scsi.Task) bool {
	k := t.Unit.(*task)
	i := k.itl
	if i == nil || i.pending() || k.barrier() || i.unit.set.barriers.Load() != 0 {
		return false
	}
	d := i.denied.Load()
	switch scsi.Opcode(t.CDB[0]) {
	case scsi.OpRead10, scsi.OpRead16, scsi.OpRead6, scsi.OpRead12:
		if d&^(denyWrite|denyProtect) != 0 || !k.tryRead() {
			return false
		}
	case scsi.OpTestUnitReady:
		if d&^(denyRead|denyWrite|denyProtect) != 0 || t.CDB[5]&0x04 != 0 {
			return false
		}
		if !k.state.CompareAndSwap(queued, running) {
			return false
		}
		t.Status = scsi.Good
	default:
		return false
	}
	u := i.unit
	if answer, _ := u.leave(k); !answer {
		// Aborted while it ran. Execute, which the caller turns to now, must
		// find it so; whoever aborted it need not wait for that, since it is
		// out of the set.
		clearAnswer(t)
		k.state.Store(dead)
		return false
	}
	p.srv.freeTask(k)
	return true
}

// tryRead serves a READ whose blocks are in memory. The data is read while the
// task is still queued, so that a miss leaves nothing to undo: a read that was
// aborted meanwhile is thrown away.
func (k *task) tryRead() bool {
	t, ok := scsi.DecodeTransfer(k.CDB)
	n := bytesOf(uint64(t.Blocks))
	u := k.itl.unit
	if !ok || t.Protect != 0 || t.FUA || n == 0 || n > quickMax || n > int64(k.ExpectedIn) ||
		k.CDB[scsi.CDBLength(scsi.Opcode(k.CDB[0]))-1]&0x04 != 0 {
		return false
	}
	if total := u.blocks.Load(); t.LBA > total || uint64(t.Blocks) > total-t.LBA {
		return false
	}
	b := k.port.srv.getBuffer(int(n))
	if !u.vol().TryReadAt(b.data, bytesOf(t.LBA)) || !k.state.CompareAndSwap(queued, running) {
		b.put()
		return false
	}
	k.Status, k.DataIn, k.Release = scsi.Good, b.data, b.release
	u.count.read(n, k.port.srv.now()-k.began)
	return true
}

// read is READ of all sizes. SBC-3, 5.10 to 5.13.
func (k *task) read() *scsi.Check {
	t, check := k.transfer(transferMax)
	if check != nil {
		return check
	}
	n := bytesOf(uint64(t.Blocks))
	// Of what the initiator does not expect nothing is read: the length alone
	// makes the residual.
	want := min(n, (int64(k.ExpectedIn)+block.SectorSize-1)&^(block.SectorSize-1))
	switch {
	case n == 0:
		return nil
	case n-want > wasteMax:
		return scsi.InvalidCDB(lengthField(k.CDB), -1)
	}
	u := k.itl.unit
	if t.FUA && u.vol().WriteCache() {
		// The medium must have what is read. SBC-3, 4.15.3.
		if err := u.vol().Flush(); err != nil {
			return failed(err, -1)
		}
	}
	b := k.port.srv.getBuffer(int(n))
	if want > 0 {
		if err := u.vol().ReadAt(b.data[:want], bytesOf(t.LBA)); err != nil {
			check := failed(err, k.locate(err, t.LBA, b.data[:want]))
			b.put()
			return check
		}
	}
	clear(b.data[want:])
	k.DataIn, k.Release = b.data, b.release
	u.count.read(n, k.port.srv.now()-k.began)
	return nil
}

// locate finds the first logical block that cannot be read of those that
// failed together, for the INFORMATION field: initiators rewrite or report
// that one. SBC-3, 4.18.1. It returns -1 when it is not the medium.
func (k *task) locate(err error, lba uint64, p []byte) int64 {
	if !fault.Is(err, fault.Corrupt) {
		return -1
	}
	for at := lba; len(p) > 0; {
		n := min(int64(len(p)), bytesOf(perPhysical-at%perPhysical))
		if k.itl.unit.vol().ReadAt(p[:n], bytesOf(at)) != nil {
			return int64(at)
		}
		at, p = at+uint64(n/block.SectorSize), p[n:]
	}
	return int64(lba) // it reads now: a repair came in between
}

// dataOut returns the part of the task's data that a command of n bytes takes.
// An initiator may announce less: whole blocks of it are taken, and a part of
// a block is refused, since nothing says what the rest of the block should be.
// RFC 7143, 11.4.5.2.
func (k *task) dataOut(n int64) ([]byte, *scsi.Check) {
	k.Required = int(n)
	data := k.DataOut
	if int64(len(data)) > n {
		data = data[:n]
	}
	if len(data)%block.SectorSize != 0 {
		return nil, scsi.Fail(scsi.KeyIllegalRequest, 0x0e, 0x03) // INVALID FIELD IN COMMAND INFORMATION UNIT
	}
	return data, nil
}

// flags returns how a write is to be done.
func flags(t scsi.Transfer) block.Flags {
	if t.FUA {
		return block.FUA
	}
	return 0
}

// write is WRITE of all sizes. SBC-3, 5.29 to 5.32.
func (k *task) write() *scsi.Check {
	t, check := k.transfer(transferMax)
	if check != nil {
		k.Required = int(bytesOf(uint64(t.Blocks)))
		return check
	}
	data, check := k.dataOut(bytesOf(uint64(t.Blocks)))
	if check != nil {
		return check
	}
	return k.store(data, t)
}

// store writes data at a command's range.
func (k *task) store(data []byte, t scsi.Transfer) *scsi.Check {
	u := k.itl.unit
	if len(data) > 0 {
		if err := u.vol().WriteAt(data, bytesOf(t.LBA), flags(t)); err != nil {
			return failed(err, int64(t.LBA))
		}
	}
	u.count.written(int64(len(data)), k.port.srv.now()-k.began)
	return nil
}

// writeVerify is WRITE AND VERIFY: a durable write, and the blocks read back
// and, with BYTCHK, compared. SBC-3, 5.33 to 5.35.
func (k *task) writeVerify() *scsi.Check {
	t, check := k.transfer(transferMax)
	if check == nil && t.ByteCheck > 1 {
		check = scsi.InvalidCDB(1, 2)
	}
	if check != nil {
		k.Required = int(bytesOf(uint64(t.Blocks)))
		return check
	}
	data, check := k.dataOut(bytesOf(uint64(t.Blocks)))
	if check != nil {
		return check
	}
	t.FUA = true // what is verified is the medium, not a cache
	if check := k.store(data, t); check != nil {
		return check
	}
	if t.ByteCheck == 0 {
		return k.compare(t.LBA, int64(len(data)), nil)
	}
	return k.compare(t.LBA, int64(len(data)), data)
}

// verify is VERIFY: the blocks are read and, by BYTCHK, compared with the data
// (01b) or each with the one block that was sent (11b). SBC-3, 5.26 to 5.28.
func (k *task) verify() *scsi.Check {
	t, check := k.transfer(transferMax)
	if check != nil {
		return check
	}
	n := bytesOf(uint64(t.Blocks))
	switch t.ByteCheck {
	case 0:
		return k.compare(t.LBA, n, nil)
	case 1:
		data, check := k.dataOut(n)
		if check != nil {
			return check
		}
		return k.compare(t.LBA, int64(len(data)), data)
	case 3:
		if n == 0 {
			return nil
		}
		k.Required = block.SectorSize
		if len(k.DataOut) != block.SectorSize {
			return scsi.Fail(scsi.KeyIllegalRequest, 0x0e, 0x03)
		}
		return k.compare(t.LBA, n, k.DataOut)
	}
	return scsi.InvalidCDB(1, 2)
}

// chunkMax is how many bytes a long command handles at a time; between chunks
// it looks whether it was aborted.
const chunkMax = 1 << 20

// compare reads n bytes from lba and compares them with want: with nothing
// when that is nil, with as many bytes, or with one block again and again.
func (k *task) compare(lba uint64, n int64, want []byte) *scsi.Check {
	u := k.itl.unit
	b := bufpool.Get(int(min(n, chunkMax)))
	defer bufpool.Put(b)
	for done := int64(0); done < n; {
		if k.stop.Load() {
			return ended
		}
		p := b[:min(n-done, int64(len(b)))]
		if err := u.vol().ReadAt(p, bytesOf(lba)+done); err != nil {
			return failed(err, k.locate(err, lba+uint64(done/block.SectorSize), p))
		}
		if at := mismatch(p, want, done); at >= 0 {
			return scsi.FailAt(scsi.KeyMiscompare, 0x1d, 0, uint64(done+at))
		}
		done += int64(len(p))
	}
	return nil
}

// mismatch returns the offset in p of the first byte that differs from want,
// which p is read against from off on, or -1.
func mismatch(p, want []byte, off int64) int64 {
	if want == nil {
		return -1
	}
	if int64(len(want)) >= off+int64(len(p)) {
		want = want[off : off+int64(len(p))]
	}
	for at := 0; at < len(p); at += len(want) {
		if q := p[at : at+len(want)]; !bytes.Equal(q, want) {
			for i := range q {
				if q[i] != want[i] {
					return int64(at + i)
				}
			}
		}
	}
	return -1
}

// orWrite is ORWRITE(16): the medium's content OR the data. Compare-and-write
// makes it one atomic step against every other command; it is retried when
// another write came between. SBC-3, 5.8.
func (k *task) orWrite() *scsi.Check {
	t, check := k.transfer(transferMax)
	n := bytesOf(uint64(t.Blocks))
	if check != nil {
		k.Required = int(n)
		return check
	}
	data, check := k.dataOut(n)
	if check != nil || len(data) == 0 {
		return check
	}
	u := k.itl.unit
	old, merged := bufpool.Get(len(data)), bufpool.Get(len(data))
	defer bufpool.Put(old)
	defer bufpool.Put(merged)
	for !k.stop.Load() {
		if err := u.vol().ReadAt(old, bytesOf(t.LBA)); err != nil {
			return failed(err, k.locate(err, t.LBA, old))
		}
		for i := range merged {
			merged[i] = old[i] | data[i]
		}
		at, err := u.vol().CompareAndWrite(bytesOf(t.LBA), old, merged, flags(t))
		if err != nil {
			return failed(err, int64(t.LBA))
		}
		if at < 0 {
			u.count.written(int64(len(data)), k.port.srv.now()-k.began)
			return nil
		}
	}
	return ended
}

// compareAndWrite is COMPARE AND WRITE, which cluster filesystems take their
// locks with. Its data is all or nothing. SBC-3, 5.2.
func (k *task) compareAndWrite() *scsi.Check {
	t, check := k.transfer(compareMax)
	n := bytesOf(uint64(t.Blocks))
	k.Required = int(2 * n)
	if check != nil {
		return check
	}
	if int64(len(k.DataOut)) != 2*n {
		return scsi.InvalidCDB(13, -1)
	}
	if n == 0 {
		return nil
	}
	u := k.itl.unit
	at, err := u.vol().CompareAndWrite(bytesOf(t.LBA), k.DataOut[:n], k.DataOut[n:], flags(t))
	switch {
	case err != nil:
		return failed(err, int64(t.LBA))
	case at >= 0:
		return scsi.FailAt(scsi.KeyMiscompare, 0x1d, 0, uint64(at))
	}
	u.count.written(n, k.port.srv.now()-k.began)
	return nil
}

// prefetch is PRE-FETCH. It reads nothing ahead: the cache decides better what
// to keep than a hint, and GOOD promises nothing. SBC-3, 5.9.
func (k *task) prefetch() *scsi.Check {
	_, check := k.transfer(1<<32 - 1)
	return check
}

// synchronize is SYNCHRONIZE CACHE. All of the volume is flushed, whatever the
// range, and IMMED does not make it answer early: an answer means stable.
// SBC-3, 5.22, 5.23.
func (k *task) synchronize() *scsi.Check {
	if _, check := k.transfer(1<<32 - 1); check != nil {
		return check
	}
	if err := k.itl.unit.vol().Flush(); err != nil {
		return failed(err, -1)
	}
	return nil
}
