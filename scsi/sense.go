package scsi

import (
	"encoding/binary"
	"fmt"

	"steadfast/fault"
)

// Sense keys. SPC-4, 4.5.6.
const (
	KeyNoSense        = 0x0
	KeyNotReady       = 0x2
	KeyMediumError    = 0x3
	KeyHardwareError  = 0x4
	KeyIllegalRequest = 0x5
	KeyUnitAttention  = 0x6
	KeyDataProtect    = 0x7
	KeyCopyAborted    = 0xa
	KeyAbortedCommand = 0xb
	KeyMiscompare     = 0xe
)

// Check is why a command did not end with GOOD: its status and, for CHECK
// CONDITION, what the sense data says. It is an error, so that it can pass
// through code that knows nothing of SCSI.
type Check struct {
	Status Status
	fault.Sense
	// Information is the INFORMATION field: an LBA, or for COMPARE AND WRITE
	// the byte offset of the first difference.
	Information    uint64
	HasInformation bool
	// Field points at the byte (and bit, if 0 to 7) of the CDB or the
	// parameter list that was wrong. SPC-4, 4.5.2.4.2.
	HasField bool
	InData   bool // the parameter list, and not the CDB
	Byte     uint16
	Bit      int8
	// Command is the COMMAND-SPECIFIC INFORMATION field.
	Command uint32
}

// Error implements error.
func (c *Check) Error() string {
	if c.Status != CheckCondition {
		return fmt.Sprintf("SCSI status %02xh", uint8(c.Status))
	}
	return fmt.Sprintf("sense %xh/%02xh/%02xh", c.Key, c.ASC, c.ASCQ)
}

// Fail returns a CHECK CONDITION with the sense triple.
func Fail(key, asc, ascq uint8) *Check {
	return &Check{Status: CheckCondition, Sense: fault.Sense{Key: key, ASC: asc, ASCQ: ascq}}
}

// FailAt is Fail with lba in the INFORMATION field.
func FailAt(key, asc, ascq uint8, lba uint64) *Check {
	c := Fail(key, asc, ascq)
	c.Information, c.HasInformation = lba, true
	return c
}

// InvalidCDB returns INVALID FIELD IN CDB that points at a byte, and at its
// highest wrong bit unless bit is negative.
func InvalidCDB(at int, bit int) *Check {
	c := Fail(KeyIllegalRequest, 0x24, 0)
	c.HasField, c.Byte, c.Bit = true, uint16(at), int8(bit)
	return c
}

// InvalidData is InvalidCDB for a field of the parameter list.
func InvalidData(at int, bit int) *Check {
	c := InvalidCDB(at, bit)
	c.ASC, c.InData = 0x26, true
	return c
}

// ListLength returns PARAMETER LIST LENGTH ERROR.
func ListLength() *Check { return Fail(KeyIllegalRequest, 0x1a, 0) }

// OutOfRange returns LOGICAL BLOCK ADDRESS OUT OF RANGE for lba.
func OutOfRange(lba uint64) *Check { return FailAt(KeyIllegalRequest, 0x21, 0, lba) }

// SenseMax is the greatest length in bytes of what AppendSense appends.
const SenseMax = 40

// AppendSense appends c's sense data: in descriptor format, or in fixed format,
// whose INFORMATION field is left invalid when it does not fit 32 bits.
// SPC-4, 4.5.2 and 4.5.3.
func (c *Check) AppendSense(dst []byte, descriptors bool) []byte {
	if descriptors {
		return c.appendDescriptors(dst)
	}
	var b [18]byte
	b[0] = 0x70
	b[2] = c.Key
	if c.HasInformation && c.Information <= 0xffff_ffff {
		b[0] |= 0x80
		binary.BigEndian.PutUint32(b[3:], uint32(c.Information))
	}
	b[7] = 10
	binary.BigEndian.PutUint32(b[8:], c.Command)
	b[12], b[13] = c.ASC, c.ASCQ
	c.putField(b[15:])
	return append(dst, b[:]...)
}

// appendDescriptors appends descriptor format sense data.
func (c *Check) appendDescriptors(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, 0x72, c.Key, c.ASC, c.ASCQ, 0, 0, 0, 0)
	if c.HasInformation {
		dst = append(dst, 0x00, 0x0a, 0x80, 0)
		dst = binary.BigEndian.AppendUint64(dst, c.Information)
	}
	if c.Command != 0 {
		dst = append(dst, 0x01, 0x0a, 0, 0)
		dst = binary.BigEndian.AppendUint64(dst, uint64(c.Command))
	}
	if c.HasField {
		var sks [3]byte
		c.putField(sks[:])
		dst = append(dst, 0x02, 0x06, 0, 0, sks[0], sks[1], sks[2], 0)
	}
	dst[start+7] = byte(len(dst) - start - 8)
	return dst
}

// putField writes the three bytes of a field pointer.
func (c *Check) putField(b []byte) {
	if !c.HasField {
		return
	}
	b[0] = 0x80
	if !c.InData {
		b[0] |= 0x40
	}
	if c.Bit >= 0 {
		b[0] |= 0x08 | byte(c.Bit)&7
	}
	binary.BigEndian.PutUint16(b[1:], c.Byte)
}

// DecodeSense reads the sense triple and the INFORMATION field out of sense
// data of either format. It returns false when b is neither.
func DecodeSense(b []byte) (c Check, ok bool) {
	c.Status = CheckCondition
	switch {
	case len(b) >= 14 && b[0]&0x7e == 0x70:
		c.Sense = fault.Sense{Key: b[2] & 0xf, ASC: b[12], ASCQ: b[13]}
		c.HasInformation = b[0]&0x80 != 0
		c.Information = uint64(binary.BigEndian.Uint32(b[3:]))
		if len(b) >= 18 && b[15]&0x80 != 0 {
			c.getField(b[15:])
		}
		return c, true
	case len(b) >= 8 && b[0]&0x7e == 0x72:
		c.Sense = fault.Sense{Key: b[1] & 0xf, ASC: b[2], ASCQ: b[3]}
		rest := b[8:min(len(b), 8+int(b[7]))]
		for len(rest) >= 2 && len(rest) >= 2+int(rest[1]) {
			d := rest[:2+int(rest[1])]
			switch {
			case d[0] == 0 && len(d) >= 12:
				c.HasInformation = d[2]&0x80 != 0
				c.Information = binary.BigEndian.Uint64(d[4:])
			case d[0] == 2 && len(d) >= 8 && d[4]&0x80 != 0:
				c.getField(d[4:])
			}
			rest = rest[len(d):]
		}
		return c, true
	}
	return c, false
}

func (c *Check) getField(b []byte) {
	c.HasField, c.InData, c.Bit = true, b[0]&0x40 == 0, -1
	if b[0]&0x08 != 0 {
		c.Bit = int8(b[0] & 7)
	}
	c.Byte = binary.BigEndian.Uint16(b[1:])
}
