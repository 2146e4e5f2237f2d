package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store"
)

// Reader reads a whole pool. Rand chooses how.
type Reader struct {
	Rand *rand.Rand
	// Attributes are the keys to ask for.
	Attributes []string
	// Forgive takes fault.Corrupt and fault.Failed from reads of blocks as an
	// answer, and notes the block as bad.
	Forgive bool
}

// Observed is a pool as it was read.
type Observed struct {
	*State
	Status    store.PoolStatus
	Statuses  map[string]store.VolumeStatus
	Snapshots map[string][]store.SnapshotStatus
	// Waste counts blocks that are mapped and hold zeros.
	Waste int
}

// Read reads all volumes and snapshots of p.
func (r *Reader) Read(p Pool) (*Observed, error) {
	out := &Observed{State: NewState(), Status: p.Status(), Statuses: map[string]store.VolumeStatus{}, Snapshots: map[string][]store.SnapshotStatus{}}
	out.Thresholds = append([]int(nil), out.Status.Thresholds...)
	last := ""
	for _, st := range p.Volumes() {
		if st.Name <= last {
			return nil, fmt.Errorf("volumes are not sorted: %q after %q", st.Name, last)
		}
		last = st.Name
		v, err := r.readVolume(p, st, out)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", st.Name, err)
		}
		out.Volumes[st.Name] = v
		out.Statuses[st.Name] = st
	}
	return out, nil
}

func (r *Reader) readVolume(p Pool, st store.VolumeStatus, out *Observed) (*Volume, error) {
	v := &Volume{
		Name: st.Name, ID: st.ID, Size: st.Size, WriteCache: st.WriteCache, ReadOnly: st.ReadOnly,
		OriginName: st.Origin, Attributes: map[string]string{}, History: newHistory(), Bad: map[int64]bool{},
	}
	one, err := p.Volume(st.Name)
	if one != st || err != nil {
		return nil, fmt.Errorf("asked alone it is %+v (error: %w), in the list %+v", one, err, st)
	}
	v.Base, v.Tracked = p.Base(st.Name)
	dev, err := p.OpenVolume(st.Name)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer dev.Close()
	for _, key := range r.Attributes {
		value, err := dev.Attribute(key)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", key, err)
		}
		if len(value) > 0 {
			v.Attributes[key] = string(value)
		}
	}
	if err := r.readContent(dev, st.Size, v.Content, v.Bad, out); err != nil {
		return nil, err
	}
	snaps, err := p.Snapshots(st.Name)
	if err != nil || len(snaps) != st.Snapshots {
		return nil, fmt.Errorf("%d snapshots listed (%w), %d counted", len(snaps), err, st.Snapshots)
	}
	out.Snapshots[st.Name] = snaps
	for _, s := range snaps {
		snap := &Snapshot{Name: s.Name, Size: s.Size, History: newHistory(), Bad: map[int64]bool{}}
		dev, err := p.OpenSnapshot(st.Name, s.Name)
		if err != nil {
			return nil, fmt.Errorf("open snapshot %s: %w", s.Name, err)
		}
		err = errors.Join(r.readContent(dev, s.Size, snap.Content, snap.Bad, out), dev.Close())
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", s.Name, err)
		}
		v.Snapshots = append(v.Snapshots, snap)
	}
	return v, nil
}

// wholeMax bounds the volumes that are read to their last byte, in bytes. Of
// the holes of a larger one, samples are read.
const wholeMax = 32 << 20

// readContent walks a device by Mapped, and reads it piece by piece.
func (r *Reader) readContent(dev Device, size int64, to Content, bad map[int64]bool, out *Observed) error {
	if dev.Size() != size {
		return fmt.Errorf("its size is %d, its status says %d", dev.Size(), size)
	}
	for off := int64(0); off < size; {
		mapped, n, err := dev.Mapped(off, size-off)
		if r.forgives(err) {
			mapped, n, err = true, min(size-off, 64<<10), nil
		}
		if err != nil || n <= 0 || n > size-off || n%block.BlockSize != 0 {
			return fmt.Errorf("mapped(%d, %d): %v, %d, %w", off, size-off, mapped, n, err)
		}
		if err := r.readRun(dev, off, n, mapped, to, bad, out); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (r *Reader) readRun(dev Device, off, n int64, mapped bool, to Content, bad map[int64]bool, out *Observed) error {
	end := off + n
	if !mapped && n > wholeMax {
		for range 8 {
			at := (off + r.Rand.Int64N(n)) &^ (block.BlockSize - 1)
			if err := r.readPiece(dev, at, block.BlockSize, mapped, to, bad, out); err != nil {
				return err
			}
		}
		return nil
	}
	for off < end {
		piece := min(end-off, int64(1+r.Rand.IntN(64))*block.BlockSize)
		if err := r.readPiece(dev, off, piece, mapped, to, bad, out); err != nil {
			return err
		}
		off += piece
	}
	return nil
}

// readPiece reads whole blocks. When a piece cannot be read, each block is
// read by itself: the error must be about the bad ones only.
func (r *Reader) readPiece(dev Device, off, n int64, mapped bool, to Content, bad map[int64]bool, out *Observed) error {
	p := bufpool.Get(int(n))
	defer bufpool.Put(p)
	err := dev.ReadAt(p, off)
	if r.forgives(err) {
		if n == block.BlockSize {
			bad[off/block.BlockSize] = true
			return nil
		}
		for at := off; at < off+n; at += block.BlockSize {
			if err := r.readPiece(dev, at, block.BlockSize, mapped, to, bad, out); err != nil {
				return err
			}
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	if err := tryRead(dev, p, off); err != nil {
		return err
	}
	stamps, err := Decode(p)
	if err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	for i := range n / block.BlockSize {
		b := Block(stamps[i*SectorsPerBlock : (i+1)*SectorsPerBlock])
		switch {
		case b != Block{} && !mapped:
			return fmt.Errorf("block %d is not mapped but holds %x", off/block.BlockSize+i, b)
		case b != Block{}:
			to[off/block.BlockSize+i] = Cell{Block: b}
		case mapped:
			out.Waste++
		}
	}
	return nil
}

// tryRead holds the quick way to read against the slow one.
func tryRead(dev Device, want []byte, off int64) error {
	p := bufpool.Get(len(want))
	defer bufpool.Put(p)
	if dev.TryReadAt(p, off) && !bytes.Equal(p, want) {
		return fmt.Errorf("TryReadAt of %d bytes at %d differs from ReadAt", len(p), off)
	}
	return nil
}

func (r *Reader) forgives(err error) bool {
	return r.Forgive && (fault.Is(err, fault.Corrupt) || fault.Is(err, fault.Failed))
}
