package lun

import (
	"math"

	"steadfast/block"
	"steadfast/scsi"
)

// thresholdExponent is the threshold set size of logical block provisioning,
// as a power of two of blocks: 1 MiB. SBC-3, 6.6.7.
const thresholdExponent = 11

// modeSense is MODE SENSE of both sizes. SPC-4, 6.13, 6.14.
func (k *task) modeSense() *scsi.Check {
	q := scsi.DecodeMode(k.CDB)
	u := k.itl.unit
	m, _, err := u.told()
	if err != nil {
		return failed(err, -1)
	}
	m.WriteCache = u.vol().WriteCache()
	switch q.Control {
	case scsi.ModeSaved:
		return scsi.Fail(scsi.KeyIllegalRequest, 0x39, 0) // SAVING PARAMETERS NOT SUPPORTED
	case scsi.ModeDefault:
		m = scsi.Mode{}
	}
	protected := k.itl.denied.Load()&denyProtect != 0 || u.protected.Load()
	data := scsi.AppendModeHeader(nil, q, protected, u.blocks.Load(), block.SectorSize)
	data, ok := m.AppendPages(data, q.Page, q.Subpage, q.Control)
	if !ok {
		return scsi.InvalidCDB(2, 5)
	}
	scsi.EndMode(data, q.Ten)
	return k.reply(data, q.Length)
}

// modeSelect is MODE SELECT of both sizes: the write cache, which is kept with
// the volume, SWP, TAS and D_SENSE, which last until the next reset. All other
// nexuses hear of a change. SPC-4, 6.11, 6.12.
func (k *task) modeSelect() *scsi.Check {
	brought := func() {}
	check := k.changeMode(&brought)
	brought()
	return check
}

// changeMode performs it. It sets brought, to be called before the answer, when
// nexuses of other nodes are to be told.
func (k *task) changeMode(brought *func()) *scsi.Check {
	q := scsi.DecodeMode(k.CDB)
	k.Required = q.Length
	switch {
	case q.Save:
		return scsi.InvalidCDB(1, 0)
	case !q.PageFormat && q.Length > 0:
		return scsi.InvalidCDB(1, 4)
	case len(k.DataOut) < q.Length:
		return scsi.ListLength()
	}
	u := k.itl.unit
	u.persist.Lock() // between our look and our change nobody else changes it
	defer u.persist.Unlock()
	if check := k.outdated(writes); check != nil {
		return check
	}
	cache := u.vol().WriteCache()
	u.mu.Lock()
	old := u.mode
	old.WriteCache = cache
	m, check := scsi.DecodeModeSelect(k.DataOut[:q.Length], q.Ten, old, u.blocks.Load(), block.SectorSize)
	u.mu.Unlock()
	if check != nil || m == old {
		return check
	}
	if m.WriteCache != cache {
		// The volume reports the change, and so every nexus hears of it.
		if err := u.vol().SetWriteCache(m.WriteCache); err != nil {
			return failed(err, -1)
		}
	}
	if err := u.keepMode(m); err != nil {
		if m.WriteCache != cache {
			_ = u.vol().SetWriteCache(cache) // when that fails as well, all nexuses have heard of the change
		}
		return refusal(err)
	}
	u.mu.Lock()
	u.mode = m
	u.sense.Store(m.DescriptorSense)
	u.mu.Unlock()
	u.reload()
	attend(u.all(k.itl), modeChanged)
	k.itl.drop(modeChanged)
	if old.WriteCache = m.WriteCache; m != old {
		// Of the write cache the volume tells on all nodes.
		*brought = u.tellAway(everyone(modeChanged, k.itl.nexus))
	}
	return nil
}

// logSense is LOG SENSE. SPC-4, 6.9.
func (k *task) logSense() *scsi.Check {
	q := scsi.DecodeLogSense(k.CDB)
	if q.Save {
		return scsi.InvalidCDB(1, 0)
	}
	space, ok := k.itl.unit.vol().(SpaceReporter)
	codes := []byte{scsi.LogSupported, scsi.LogProvisioning, scsi.LogExceptions}
	if !ok {
		codes = []byte{scsi.LogSupported, scsi.LogExceptions}
	}
	var fill func([]byte) []byte
	switch {
	case q.Page == scsi.LogSupported && q.Subpage == 0:
		fill = func(b []byte) []byte { return append(b, codes...) }
	case q.Page == scsi.LogSupported && q.Subpage == 0xff:
		fill = func(b []byte) []byte {
			for _, c := range codes {
				b = append(b, c, 0)
			}
			return append(b, scsi.LogSupported, 0xff)
		}
	case q.Subpage != 0:
		return scsi.InvalidCDB(3, 7)
	case q.Page == scsi.LogProvisioning && ok:
		fill = func(b []byte) []byte {
			available, used := space.Space()
			return scsi.AppendSpaceParameters(b, thresholds(available), thresholds(used), q.First)
		}
	case q.Page == scsi.LogExceptions:
		fill = func(b []byte) []byte { return scsi.AppendExceptionParameters(b, q.First) }
	default:
		return scsi.InvalidCDB(2, 5)
	}
	return k.reply(scsi.AppendLogPage(nil, q.Page, q.Subpage, fill), q.Allocation)
}

// thresholds returns bytes in threshold sets.
func thresholds(n int64) uint32 {
	return uint32(min(max(n, 0)/(block.SectorSize<<thresholdExponent), math.MaxUint32))
}
