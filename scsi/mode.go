package scsi

import "encoding/binary"

// Mode pages that a disk of ours has, and the wildcard.
const (
	PageCaching    = 0x08
	PageControl    = 0x0a
	PageExceptions = 0x1c
	PageAll        = 0x3f
	SubpageAll     = 0xff
)

// Mode is what the mode pages of a logical unit say, as far as it can vary.
type Mode struct {
	WriteCache      bool // WCE. SBC-3, 6.5.5
	DescriptorSense bool // D_SENSE. SPC-4, 7.5.8
	SoftwareProtect bool // SWP
	TaskAborted     bool // TAS
}

// pageBody returns a mode page without its two header bytes, by the page
// control; it returns nil for a page that there is not.
func (m Mode) pageBody(page, control uint8) []byte {
	bit := func(on bool, mask byte) byte {
		switch {
		case control == ModeChangeable:
			return mask
		case on:
			return mask
		}
		return 0
	}
	fixed := func(v byte) byte {
		if control == ModeChangeable {
			return 0
		}
		return v
	}
	switch page {
	case PageCaching:
		b := make([]byte, 18)
		b[0] = bit(m.WriteCache, 0x04)
		return b
	case PageControl:
		b := make([]byte, 10)
		// TST 000b: one task set for all nexuses. GLTSD: log parameters are
		// not saved.
		b[0] = bit(m.DescriptorSense, 0x04) | fixed(0x02)
		b[1] = fixed(0x10) // unrestricted reordering of SIMPLE tasks
		b[2] = bit(m.SoftwareProtect, 0x08)
		b[3] = bit(m.TaskAborted, 0x40)
		b[6], b[7] = fixed(0xff), fixed(0xff) // busy timeout: unlimited
		return b
	case PageExceptions:
		b := make([]byte, 10)
		b[0] = fixed(0x08) // DEXCPT: nothing is reported this way
		return b
	}
	return nil
}

// modePages lists the pages in ascending order, as PageAll returns them.
var modePages = [...]uint8{PageCaching, PageControl, PageExceptions}

// AppendPages appends the mode pages that page and subpage select. It returns
// false when there is no such page. SPC-4, 7.5.
func (m Mode) AppendPages(dst []byte, page, subpage, control uint8) ([]byte, bool) {
	if subpage != 0 && subpage != SubpageAll {
		return dst, false
	}
	found := false
	for _, p := range modePages {
		if page != PageAll && page != p {
			continue
		}
		body := m.pageBody(p, control)
		dst = append(append(dst, p, byte(len(body))), body...)
		found = true
	}
	return dst, found
}

// AppendModeHeader appends the mode parameter header and, unless suppressed,
// the block descriptor; EndMode completes the length. SPC-4, 7.5.5, 7.5.6;
// SBC-3, 6.5.2.
func AppendModeHeader(dst []byte, cdb ModeCDB, protected bool, blocks uint64, blockSize uint32) []byte {
	device := byte(0x10) // DPOFUA
	if protected {
		device |= 0x80
	}
	desc := 8
	switch {
	case cdb.NoDescriptors:
		desc = 0
	case cdb.LongLBA:
		desc = 16
	}
	if cdb.Ten {
		long := byte(0)
		if desc == 16 {
			long = 1
		}
		dst = append(dst, 0, 0, 0, device, long, 0, 0, byte(desc))
	} else {
		dst = append(dst, 0, 0, device, byte(desc))
	}
	switch desc {
	case 8:
		dst = binary.BigEndian.AppendUint32(dst, uint32(min(blocks, 0xffff_ffff)))
		dst = binary.BigEndian.AppendUint32(dst, blockSize&0xff_ffff)
	case 16:
		dst = binary.BigEndian.AppendUint64(dst, blocks)
		dst = append(dst, 0, 0, 0, 0)
		dst = binary.BigEndian.AppendUint32(dst, blockSize)
	}
	return dst
}

// EndMode writes the mode data length into the header at the start of data.
func EndMode(data []byte, ten bool) {
	if ten {
		binary.BigEndian.PutUint16(data, uint16(len(data)-2))
		return
	}
	data[0] = byte(len(data) - 1)
}

// DecodeModeSelect applies a MODE SELECT parameter list to m. A bit that the
// page does not let change must have its present value. SPC-4, 6.9.
func DecodeModeSelect(list []byte, ten bool, m Mode, blocks uint64, blockSize uint32) (Mode, *Check) {
	header := 4
	if ten {
		header = 8
	}
	if len(list) == 0 {
		return m, nil
	}
	if len(list) < header {
		return m, ListLength()
	}
	desc, long := int(list[3]), false
	if ten {
		desc, long = int(binary.BigEndian.Uint16(list[6:])), list[4]&1 != 0
	}
	if len(list) < header+desc {
		return m, ListLength()
	}
	if !sameDescriptor(list[header:header+desc], long, blocks, blockSize) {
		return m, InvalidData(header, -1)
	}
	for at := header + desc; at < len(list); {
		page := list[at:]
		if len(page) < 2 || len(page) < 2+int(page[1]) {
			return m, ListLength()
		}
		page = page[:2+int(page[1])]
		next, check := m.applyPage(page, at)
		if check != nil {
			return m, check
		}
		m, at = next, at+len(page)
	}
	return m, nil
}

// sameDescriptor reports whether a block descriptor asks for what is: the
// number of blocks and their size cannot change. 0 blocks, and the greatest
// number, mean the present one. SBC-3, 6.5.2.
func sameDescriptor(d []byte, long bool, blocks uint64, blockSize uint32) bool {
	switch {
	case len(d) == 0:
		return true
	case len(d) == 8 && !long:
		n := uint64(binary.BigEndian.Uint32(d))
		return binary.BigEndian.Uint32(d[4:])&0xff_ffff == blockSize &&
			(n == 0 || n == 0xffff_ffff || n == blocks)
	case len(d) == 16 && long:
		n := binary.BigEndian.Uint64(d)
		return binary.BigEndian.Uint32(d[12:]) == blockSize && (n == 0 || n == 1<<64-1 || n == blocks)
	}
	return false
}

// applyPage applies one mode page, which stands at byte at of its list.
func (m Mode) applyPage(page []byte, at int) (Mode, *Check) {
	if page[0]&0x40 != 0 {
		return m, InvalidData(at, 6) // no subpages
	}
	code := page[0] & 0x3f
	body, changeable := m.pageBody(code, ModeCurrent), m.pageBody(code, ModeChangeable)
	if body == nil {
		return m, InvalidData(at, 5)
	}
	if len(page) != 2+len(body) {
		return m, InvalidData(at+1, -1)
	}
	for i, v := range page[2:] {
		if diff := (v ^ body[i]) &^ changeable[i]; diff != 0 {
			return m, InvalidData(at+2+i, -1)
		}
	}
	switch code {
	case PageCaching:
		m.WriteCache = page[2]&0x04 != 0
	case PageControl:
		m.DescriptorSense = page[2]&0x04 != 0
		m.SoftwareProtect = page[4]&0x08 != 0
		m.TaskAborted = page[5]&0x40 != 0
	}
	return m, nil
}
