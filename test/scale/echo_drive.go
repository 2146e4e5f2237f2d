package main

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/san/drive"
)

// echoDrive is a drive that need not hold its data: 26 million mappings are
// 100 GB, and the test is about the map. A block that fillBlock made is kept as
// its number in a table file; every other block (headers, nodes, superblocks)
// is kept whole. The page cache that both files use is charged to the cgroup
// of the test like everything else, and can be taken back.
type echoDrive struct {
	size  int64
	whole *os.File // sparse: blocks that are kept
	table *os.File // 8 bytes a block: number of a made block, or 0
}

func newEchoDrive(path string, size int64) (*echoDrive, error) {
	whole, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	table, err := os.OpenFile(path+".numbers", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, errors.Join(err, whole.Close())
	}
	size &^= drive.BlockSize - 1
	d := &echoDrive{size: size, whole: whole, table: table}
	// Nodes are read here and there; what the kernel read ahead of them would
	// only take memory from the group.
	return d, errors.Join(whole.Truncate(size), table.Truncate(size/drive.BlockSize*8),
		unix.Fadvise(int(whole.Fd()), 0, 0, unix.FADV_RANDOM))
}

// numberOf returns the number of a block that fillBlock made, or 0.
func numberOf(block []byte) uint64 {
	for i := 8; i < len(block); i += 8 {
		if binary.LittleEndian.Uint64(block[i:]) != 0xe5e5e5e5e5e5e5e5 {
			return 0
		}
	}
	return binary.LittleEndian.Uint64(block)
}

// ReadAt implements drive.Drive.
func (d *echoDrive) ReadAt(p []byte, off int64) error {
	if _, err := d.whole.ReadAt(p, off); err != nil {
		return fault.Wrap(fault.Failed, err, "read the pool file")
	}
	numbers := make([]byte, len(p)/drive.BlockSize*8)
	if _, err := d.table.ReadAt(numbers, off/drive.BlockSize*8); err != nil {
		return fault.Wrap(fault.Failed, err, "read the table of numbers")
	}
	for i := 0; i < len(p); i += drive.BlockSize {
		if n := binary.LittleEndian.Uint64(numbers[i/drive.BlockSize*8:]); n != 0 {
			fillBlock(p[i:i+drive.BlockSize], int64(n)-1)
		}
	}
	return nil
}

// ReadBatch implements drive.Drive.
func (d *echoDrive) ReadBatch(reads []drive.Read) { drive.ReadEach(d, reads) }

// WriteAt implements drive.Drive. Runs of blocks that are kept go out as one.
func (d *echoDrive) WriteAt(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		numbers := make([]byte, len(b)/drive.BlockSize*8)
		from := 0 // start of the run of kept blocks
		flush := func(to int) error {
			if from == to {
				return nil
			}
			_, err := d.whole.WriteAt(b[from:to], off+int64(from))
			return err
		}
		for i := 0; i < len(b); i += drive.BlockSize {
			n := numberOf(b[i : i+drive.BlockSize])
			binary.LittleEndian.PutUint64(numbers[i/drive.BlockSize*8:], n)
			if n == 0 {
				continue
			}
			if err := flush(i); err != nil {
				return fault.Wrap(fault.Failed, err, "write the pool file")
			}
			from = i + drive.BlockSize
		}
		err := flush(len(b))
		if err == nil {
			_, err = d.table.WriteAt(numbers, off/drive.BlockSize*8)
		}
		if err != nil {
			return fault.Wrap(fault.Failed, err, "write the pool file")
		}
		off += int64(len(b))
	}
	return nil
}

// WriteDurable implements drive.Drive. No power is cut here.
func (d *echoDrive) WriteDurable(bufs [][]byte, off int64) error { return d.WriteAt(bufs, off) }

// Flush implements drive.Drive.
func (d *echoDrive) Flush() error { return nil }

// Reserve implements drive.Drive.
func (d *echoDrive) Reserve(int64, int64) error { return nil }

// Discard implements drive.Drive.
func (d *echoDrive) Discard(int64, int64) error { return nil }

// Size implements drive.Drive.
func (d *echoDrive) Size() int64 { return d.size }

// Close implements drive.Drive.
func (d *echoDrive) Close() error { return errors.Join(d.whole.Close(), d.table.Close()) }
