package lun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"steadfast/block"
	"steadfast/scsi"
)

// copyResultsMax bounds the results of EXTENDED COPY that a nexus keeps, and
// with them how many copies it can have under way.
const copyResultsMax = scsi.CopiesMax

// copyResult is an EXTENDED COPY's result, kept for RECEIVE COPY RESULTS under
// its list identifier. Under port.copies.
type copyResult struct {
	unit *unit
	list uint8
	scsi.CopyResult
}

// extendedCopy is EXTENDED COPY(LID1): blocks are copied between logical units
// that this nexus sees, by reference where both are of one pool. SPC-4, 6.4.
func (k *task) extendedCopy() *scsi.Check {
	length := allocation32(k.CDB[10:])
	k.Required = length
	if len(k.DataOut) < length {
		return scsi.ListLength()
	}
	c, check := scsi.DecodeCopy(k.DataOut[:length])
	if check != nil {
		return check
	}
	for n, t := range c.Targets {
		if t.BlockSize != block.SectorSize {
			return scsi.InvalidData(16+32*n+29, -1)
		}
	}
	r := &copyResult{unit: k.itl.unit, list: c.ListID, CopyResult: scsi.CopyResult{Running: true}}
	if c.Usage != 3 && length > 0 {
		if check := k.port.keep(r); check != nil {
			return check
		}
	}
	check = k.copyAll(c, r)
	k.port.copies.Lock()
	r.Running = false
	k.port.copies.Unlock()
	return check
}

// copyAll copies segment by segment and counts in r what it did.
func (k *task) copyAll(c scsi.Copy, r *copyResult) *scsi.Check {
	ends := k.visitAll(c.Targets)
	defer k.leaveAll(ends)
	for n, s := range c.Segments {
		check := ended
		if !k.stop.Load() {
			check = k.copySegment(ends, s)
		}
		k.port.copies.Lock()
		if check != nil {
			at := *check
			at.Command = uint32(n)
			r.Failed, r.Sense = true, at.AppendSense(nil, false)
			k.port.copies.Unlock()
			return &at
		}
		r.Segments++
		r.Bytes += uint64(bytesOf(uint64(s.Blocks)))
		k.port.copies.Unlock()
	}
	return nil
}

// visitAll finds the unit of each CSCD descriptor, and enters the command into
// the task sets of those that are not its own. It stays there to its end: the
// segments are one task, and a reset of the destination that came between two
// of them must not be followed by the second. nil stands for a unit that this
// nexus does not see.
func (k *task) visitAll(targets []scsi.CopyTarget) []*task {
	ends := make([]*task, len(targets))
	for n, t := range targets {
		i := k.port.identify(t)
		at := slices.IndexFunc(ends[:n], func(o *task) bool { return o != nil && o.itl == i })
		switch {
		case i == nil:
		case i == k.itl:
			ends[n] = k
		case at >= 0:
			ends[n] = ends[at]
		default:
			ends[n] = i.unit.visit(k, i)
		}
	}
	return ends
}

// leaveAll ends what visitAll began.
func (k *task) leaveAll(ends []*task) {
	for n, t := range ends {
		if t != nil && t != k && !slices.Contains(ends[:n], t) {
			t.itl.unit.leave(t)
		}
	}
}

// copySegment copies one segment. Whatever goes wrong ends the command with
// COPY ABORTED. SPC-4, 6.4.3.
func (k *task) copySegment(ends []*task, s scsi.CopySegment) *scsi.Check {
	if int(s.Source) >= len(ends) || int(s.Destination) >= len(ends) {
		return scsi.Fail(scsi.KeyCopyAborted, 0x08, 0x04) // UNREACHABLE COPY TARGET
	}
	from, to := ends[s.Source], ends[s.Destination]
	switch {
	case from == nil || to == nil:
		return scsi.Fail(scsi.KeyCopyAborted, 0x0d, 0x02) // COPY TARGET DEVICE NOT REACHABLE
	case from.stop.Load() || to.stop.Load():
		return scsi.Fail(scsi.KeyCopyAborted, 0x0d, 0x01) // THIRD PARTY DEVICE FAILURE: ended there
	}
	n := uint64(s.Blocks)
	for _, check := range []*scsi.Check{
		from.admit(reads), to.admit(writes | modifies), from.inRange(s.SourceLBA, n), to.inRange(s.DestinationLBA, n),
	} {
		if check == nil {
			continue
		}
		if check.Status != scsi.CheckCondition {
			// A reservation on the other unit. SPC-4, 5.17.3.
			return check
		}
		return scsi.Fail(scsi.KeyCopyAborted, 0, 0)
	}
	if n == 0 {
		return nil
	}
	src, dst := from.itl.unit, to.itl.unit
	err := dst.vol().CopyFrom(bytesOf(s.DestinationLBA), src.vol(), bytesOf(s.SourceLBA), bytesOf(n), 0)
	if err != nil {
		// The cause stays in the additional sense code.
		check := failed(err, int64(s.SourceLBA))
		check.Key = scsi.KeyCopyAborted
		return check
	}
	now := k.port.srv.now() - k.began
	src.count.read(bytesOf(n), now)
	dst.count.written(bytesOf(n), now)
	return nil
}

// identify finds the unit that a designator names, among those the nexus sees.
func (p *port) identify(t scsi.CopyTarget) *itl {
	if t.Association != scsi.OfUnit {
		return nil
	}
	for _, i := range *p.view.Load() {
		if i == nil {
			continue
		}
		switch t.Kind {
		case scsi.DesignatorNAA:
			if id := naa(i.unit.id); bytes.Equal(t.Designator, id[:]) {
				return i
			}
		case scsi.DesignatorT10:
			// The descriptor has room for 20 bytes, which is enough of it.
			if full := fmt.Appendf(nil, "%-8s%x", vendor, i.unit.id); len(t.Designator) == 20 && bytes.HasPrefix(full, t.Designator) {
				return i
			}
		}
	}
	return nil
}

// keep holds the result of a copy that begins, in the place of an older one of
// the same list identifier, or of the oldest when there are too many.
// SPC-4, 6.4.3.2.
func (p *port) keep(r *copyResult) *scsi.Check {
	p.copies.Lock()
	defer p.copies.Unlock()
	same := func(o *copyResult) bool { return o.unit == r.unit && o.list == r.list }
	if slices.ContainsFunc(p.results, func(o *copyResult) bool { return same(o) && o.Running }) {
		return scsi.Fail(scsi.KeyIllegalRequest, 0x00, 0x16) // OPERATION IN PROGRESS
	}
	p.results = slices.DeleteFunc(p.results, same)
	if len(p.results) == copyResultsMax {
		oldest := slices.IndexFunc(p.results, func(o *copyResult) bool { return !o.Running })
		if oldest < 0 {
			return scsi.Fail(scsi.KeyIllegalRequest, 0x55, 0x03) // INSUFFICIENT RESOURCES
		}
		p.results = slices.Delete(p.results, oldest, oldest+1)
	}
	p.results = append(p.results, r)
	return nil
}

// result finds a copy's result; failure details are told once. SPC-4, 6.18.5.
func (k *task) result(forget bool) (r scsi.CopyResult, check *scsi.Check) {
	p := k.port
	p.copies.Lock()
	defer p.copies.Unlock()
	at := slices.IndexFunc(p.results, func(r *copyResult) bool { return r.unit == k.itl.unit && r.list == k.CDB[2] })
	if at < 0 || forget && !p.results[at].Failed {
		return r, scsi.InvalidCDB(2, 7)
	}
	r = p.results[at].CopyResult
	if forget {
		p.results = slices.Delete(p.results, at, at+1)
	}
	return r, nil
}

// copyStatus is RECEIVE COPY STATUS(LID1). SPC-4, 6.18.2.
func (k *task) copyStatus() *scsi.Check {
	r, check := k.result(false)
	if check != nil {
		return check
	}
	return k.reply(scsi.AppendCopyStatus(nil, r), allocation32(k.CDB[10:]))
}

// copyFailure is RECEIVE COPY FAILURE DETAILS(LID1). SPC-4, 6.18.5.
func (k *task) copyFailure() *scsi.Check {
	r, check := k.result(true)
	if check != nil {
		return check
	}
	return k.reply(scsi.AppendCopyFailure(nil, r), allocation32(k.CDB[10:]))
}

// copyParams is RECEIVE COPY OPERATING PARAMETERS. SPC-4, 6.18.4.
func (k *task) copyParams() *scsi.Check {
	return k.reply(scsi.AppendCopyParams(nil, block.SectorSize), int(binary.BigEndian.Uint32(k.CDB[10:])&0x3fff_ffff))
}
