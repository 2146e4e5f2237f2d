// Package probe looks at a drive before it is formatted, and says what it
// holds: the one moment in which a mistyped path can still be saved.
package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"steadfast/fault"
)

// window is how much of a drive's start and end is looked at, in bytes. Every
// filesystem, volume manager and partition table known here has its mark in
// it; so has a Steadfast pool its superblocks.
const window = 1 << 20

// mark is a byte pattern at a fixed place.
type mark struct {
	off   int64 // from the start, or from the end if negative
	magic string
	what  string
}

// marks lists what is recognised, the most telling first: a filesystem inside
// a partition table's first sectors is found before the table. Offsets are
// those of the formats' own documents, as collected in util-linux's libblkid.
func marks() []mark {
	return []mark{
		{0x10000, "SFpool", "a drive of a Steadfast pool"},
		{0x20000, "SFpool", "a drive of a Steadfast pool"},
		{0x438, "\x53\xef", "an ext2, ext3 or ext4 filesystem"},
		{0, "XFSB", "an XFS filesystem"},
		{0x10040, "_BHRfS_M", "a Btrfs filesystem"},
		{0, "LUKS\xba\xbe", "a LUKS encrypted volume"},
		{512, "LABELONE", "an LVM physical volume"},
		{0, "LABELONE", "an LVM physical volume"},
		{1024, "LABELONE", "an LVM physical volume"},
		{1536, "LABELONE", "an LVM physical volume"},
		{0, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{4096, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{-8192, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{-65536, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{4086, "SWAPSPACE2", "swap space"},
		{4086, "SWAP-SPACE", "swap space"},
		{0, "bluestore block device", "a Ceph OSD"},
		{3, "NTFS    ", "an NTFS filesystem"},
		{3, "EXFAT   ", "an exFAT filesystem"},
		{82, "FAT32   ", "a FAT filesystem"},
		{54, "FAT16   ", "a FAT filesystem"},
		{54, "FAT12   ", "a FAT filesystem"},
		{0x8001, "CD001", "an ISO 9660 image"},
		{0x400, "\x10\x20\xf5\xf2", "an F2FS filesystem"},
		{0x1018, "\xc6\x85\x73\xf6", "a bcache device"},
		{0, "QFI\xfb", "a qcow2 image"},
		{0, "KDMV", "a VMDK image"},
		{0, "vhdxfile", "a VHDX image"},
		{0, "conectix", "a VHD image"},
		{-512, "conectix", "a VHD image"},
		{512, "EFI PART", "a GPT partition table"},
		{4096, "EFI PART", "a GPT partition table"},
		{-512, "EFI PART", "a GPT partition table"},
		{-4096, "EFI PART", "a GPT partition table"},
		{510, "\x55\xaa", "a partition table or boot sector"},
	}
}

// Contents tells what the first and last megabyte of a drive of size bytes
// hold: "" when all is zero, else a phrase like "an XFS filesystem".
func Contents(r io.ReaderAt, size int64) (string, error) {
	head := make([]byte, min(window, size))
	tail := make([]byte, min(window, size))
	for off, p := range map[int64][]byte{0: head, size - int64(len(tail)): tail} {
		if _, err := r.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return "", fault.Wrap(fault.Failed, err, "cannot look at what the drive holds")
		}
	}
	for _, m := range marks() {
		p, off := head, m.off
		if off < 0 {
			p, off = tail, off+int64(len(tail))
		}
		if off >= 0 && off+int64(len(m.magic)) <= int64(len(p)) && string(p[off:off+int64(len(m.magic))]) == m.magic {
			return m.what, nil
		}
	}
	for _, p := range [][]byte{head, tail} {
		if i := bytes.IndexFunc(p, func(r rune) bool { return r != 0 }); i >= 0 {
			return "data of an unknown kind", nil
		}
	}
	return "", nil
}

// Wipe zeroes what Contents looks at, so that nobody takes the drive for what
// it was.
func Wipe(w io.WriterAt, size int64) error {
	zero := make([]byte, min(window, size))
	for _, off := range []int64{0, size - int64(len(zero))} {
		if _, err := w.WriteAt(zero, off); err != nil {
			return fault.Wrap(fault.Failed, err, fmt.Sprintf("cannot wipe %d bytes at %d", len(zero), off))
		}
	}
	return nil
}
