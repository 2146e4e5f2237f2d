package lun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"steadfast/block"
	"steadfast/scsi"
)

// copyResultsMax bounds the results of EXTENDED COPY that a nexus keeps.
const copyResultsMax = 16

// copyResult is a finished EXTENDED COPY's result, kept for RECEIVE COPY
// RESULTS under its list identifier.
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
	r := copyResult{unit: k.itl.unit, list: c.ListID}
	for n, s := range c.Segments {
		if k.stop.Load() {
			return ended
		}
		if check = k.copySegment(c, s); check != nil {
			check.Command = uint32(n)
			r.Failed = true
			r.Sense = check.AppendSense(nil, false)
			break
		}
		r.Segments++
		r.Bytes += uint64(bytesOf(uint64(s.Blocks)))
	}
	if c.Usage != 3 && length > 0 {
		k.port.keep(r)
	}
	return check
}

// copySegment copies one segment. Whatever goes wrong ends the command with
// COPY ABORTED. SPC-4, 6.4.3.
func (k *task) copySegment(c scsi.Copy, s scsi.CopySegment) *scsi.Check {
	if int(s.Source) >= len(c.Targets) || int(s.Destination) >= len(c.Targets) {
		return scsi.Fail(scsi.KeyCopyAborted, 0x08, 0x04) // UNREACHABLE COPY TARGET
	}
	src, dst := k.port.identify(c.Targets[s.Source]), k.port.identify(c.Targets[s.Destination])
	if src == nil || dst == nil {
		return scsi.Fail(scsi.KeyCopyAborted, 0x0d, 0x02) // COPY TARGET DEVICE NOT REACHABLE
	}
	from, to := task{Task: k.Task, port: k.port, itl: src}, task{Task: k.Task, port: k.port, itl: dst}
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
	err := dst.unit.vol.CopyFrom(bytesOf(s.DestinationLBA), src.unit.vol, bytesOf(s.SourceLBA), bytesOf(n), 0)
	if err != nil {
		// The cause stays in the additional sense code.
		check := failed(err, int64(s.SourceLBA))
		check.Key = scsi.KeyCopyAborted
		return check
	}
	now := k.port.srv.now() - k.began
	src.unit.count.read(bytesOf(n), now)
	dst.unit.count.written(bytesOf(n), now)
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

// keep stores the result of a copy in the place of an older one of the same
// list identifier, or of the oldest when there are too many.
func (p *port) keep(r copyResult) {
	p.copies.Lock()
	defer p.copies.Unlock()
	p.results = slices.DeleteFunc(p.results, func(o copyResult) bool { return o.unit == r.unit && o.list == r.list })
	if len(p.results) == copyResultsMax {
		p.results = slices.Delete(p.results, 0, 1)
	}
	p.results = append(p.results, r)
}

// result finds a copy's result; failure details are told once. SPC-4, 6.18.5.
func (k *task) result(forget bool) (r scsi.CopyResult, check *scsi.Check) {
	p := k.port
	p.copies.Lock()
	defer p.copies.Unlock()
	at := slices.IndexFunc(p.results, func(r copyResult) bool { return r.unit == k.itl.unit && r.list == k.CDB[2] })
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
