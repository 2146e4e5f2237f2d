package drivetest

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"

	"steadfast/fault"
	"steadfast/internal/invariant"
	"steadfast/san/drive"
)

const (
	sectorSize      = 512
	sectorsPerBlock = drive.BlockSize / sectorSize
)

// page is the content of one block. Pages are never changed once stored.
type page [drive.BlockSize]byte

var zeroPage page

func sector(p *page, s int) []byte { return p[s*sectorSize : (s+1)*sectorSize] }

// cell is one block that has space on the disk.
type cell struct {
	stable     *page // nil: zeros
	cached     []version
	unreadable bool // until it is written again
}

// version is a cached content of a block, and the write it came by.
type version struct {
	write uint64
	page  *page
}

func (c *cell) stablePage() *page {
	if c.stable == nil {
		return &zeroPage
	}
	return c.stable
}

// flight is a write that the end of the world interrupted.
type flight struct {
	block int64
	pages []*page
}

// Disk is a device that outlives nodes. It takes memory for what was written
// only. Its methods beside Open inject faults or look at what it holds.
type Disk struct {
	world   *World
	name    string
	size    int64
	rand    *rand.Rand // for what the contract leaves open
	cells   map[int64]*cell
	dirty   map[int64]bool // blocks with cached versions
	flights []flight
	space   int64 // bytes that the filesystem below can give; < 0: no bound
	planned []plan
	broken  bool // failed once; later handles work again
}

// NewDisk adds a disk of size bytes to the world. r decides what the contract
// of drive.Drive leaves open.
func (w *World) NewDisk(name string, size int64, r *rand.Rand) *Disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := &Disk{world: w, name: name, size: size, rand: r, cells: map[int64]*cell{}, dirty: map[int64]bool{}, space: -1}
	w.disks = append(w.disks, d)
	return d
}

// Open returns the disk as a drive, until the world ends next.
func (d *Disk) Open() *Handle {
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	return &Handle{disk: d, life: d.world.life}
}

// Name returns the disk's name.
func (d *Disk) Name() string { return d.name }

// newest returns what a read of block b gives.
func (d *Disk) newest(b int64) *page {
	c := d.cells[b]
	switch {
	case c == nil:
		return &zeroPage
	case len(c.cached) > 0:
		return c.cached[len(c.cached)-1].page
	}
	return c.stablePage()
}

// at returns block b's cell, making it.
func (d *Disk) at(b int64) *cell {
	c := d.cells[b]
	if c == nil {
		c = &cell{}
		d.cells[b] = c
	}
	return c
}

// cache stores a version of block b that a power loss may take back.
func (d *Disk) cache(b int64, p *page, write uint64) {
	c := d.at(b)
	c.cached = append(c.cached, version{write, p})
	c.unreadable = false
	d.dirty[b] = true
}

// settle stores block b for good.
func (d *Disk) settle(b int64, p *page) {
	c := d.at(b)
	c.stable, c.cached, c.unreadable = p, nil, false
	delete(d.dirty, b)
}

// apply caches the sectors of a write that pick names: sector i of n.
func (d *Disk) apply(f flight, pick func(i, n int) bool) {
	d.world.writes++
	for i, p := range f.pages {
		torn := *d.newest(f.block + int64(i))
		for s := range sectorsPerBlock {
			if pick(i*sectorsPerBlock+s, len(f.pages)*sectorsPerBlock) {
				copy(sector(&torn, s), sector(p, s))
			}
		}
		d.cache(f.block+int64(i), &torn, d.world.writes)
	}
}

// dirtyBlocks lists the blocks with cached versions, ascending: the order in
// which random numbers are spent on them must not be a map's.
func (d *Disk) dirtyBlocks() []int64 {
	out := make([]int64, 0, len(d.dirty))
	for b := range d.dirty {
		out = append(out, b)
	}
	slices.Sort(out)
	return out
}

// Handle is a Disk for one life of the node.
type Handle struct {
	disk   *Disk
	life   int
	closed bool
	failed error // sticky, as drive.File's
}

var _ drive.Drive = (*Handle)(nil)

// check panics on what a real drive would refuse, so that a test shows it.
func (h *Handle) check(off, n int64) {
	invariant.Check(off >= 0 && off%drive.BlockSize == 0 && n%drive.BlockSize == 0 && n >= 0 && off+n <= h.disk.size,
		"disk %s of %d bytes: %d bytes at %d", h.disk.name, h.disk.size, n, off)
}

// aligned panics on a buffer that O_DIRECT would refuse.
func (h *Handle) aligned(p []byte) {
	invariant.Check(len(p) == 0 || reflect.ValueOf(p).Pointer()%drive.BlockSize == 0, "disk %s: a buffer is not aligned", h.disk.name)
}

// ReadAt implements drive.Drive.
func (h *Handle) ReadAt(p []byte, off int64) error {
	h.check(off, int64(len(p)))
	h.aligned(p)
	d := h.disk
	d.world.mu.Lock()
	defer d.world.mu.Unlock()
	if err := d.world.alive(h); err != nil {
		return err
	}
	for at := 0; at < len(p); at += drive.BlockSize {
		b := (off + int64(at)) / drive.BlockSize
		if c := d.cells[b]; c != nil && c.unreadable {
			return fault.New(fault.Corrupt, "disk %s: block %d cannot be read", d.name, b)
		}
		copy(p[at:], d.newest(b)[:])
	}
	return nil
}

// ReadBatch implements drive.Drive, one read after the other.
func (h *Handle) ReadBatch(reads []drive.Read) { drive.ReadEach(h, reads) }

// WriteAt implements drive.Drive.
func (h *Handle) WriteAt(bufs [][]byte, off int64) error { return h.write(bufs, off, false) }

// WriteDurable implements drive.Drive.
func (h *Handle) WriteDurable(bufs [][]byte, off int64) error { return h.write(bufs, off, true) }

func (h *Handle) write(bufs [][]byte, off int64, durable bool) error {
	pages := h.copyIn(bufs)
	h.check(off, int64(len(pages))*drive.BlockSize)
	d, w := h.disk, h.disk.world
	w.mu.Lock()
	defer w.mu.Unlock()
	first := off / drive.BlockSize
	verb := "writes"
	if durable {
		verb = "writes durably"
	}
	if inFlight, err := w.begin(h, verb, first, int64(len(pages))); err != nil {
		if inFlight {
			d.flights = append(d.flights, flight{first, pages})
		}
		return err
	}
	if h.failed != nil {
		return h.failed
	}
	if err := d.allocate(first, int64(len(pages))); err != nil {
		return err
	}
	switch d.next(onWrite) {
	case FailWrite:
		d.apply(flight{first, pages}, tear(d.rand))
		h.fail("writing", off)
		return h.failed
	case LoseWrite:
		w.say("%s loses the write", d.name)
		return nil
	case MisdirectWrite:
		first = d.elsewhere(first, int64(len(pages)))
		w.say("%s writes to %d instead", d.name, first)
	default:
	}
	w.writes++
	for i, p := range pages {
		if durable && !w.lying {
			d.settle(first+int64(i), p)
		} else {
			d.cache(first+int64(i), p, w.writes)
		}
	}
	return nil
}

// copyIn takes the caller's bytes before anything else: buffers are only lent
// for the call.
func (h *Handle) copyIn(bufs [][]byte) []*page {
	var pages []*page
	for _, b := range bufs {
		h.aligned(b)
		invariant.Check(len(b)%drive.BlockSize == 0, "disk %s: a buffer of %d bytes", h.disk.name, len(b))
		for at := 0; at < len(b); at += drive.BlockSize {
			p := page(b[at : at+drive.BlockSize])
			pages = append(pages, &p)
		}
	}
	return pages
}

// Flush implements drive.Drive.
func (h *Handle) Flush() error {
	d, w := h.disk, h.disk.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.begin(h, "flushes", 0, 0); err != nil {
		return err
	}
	if h.failed != nil {
		return h.failed
	}
	if d.next(onFlush) == FailFlush {
		h.fail("flushing", 0)
		return h.failed
	}
	if w.lying {
		return nil
	}
	for b := range d.dirty {
		c := d.cells[b]
		c.stable, c.cached = c.cached[len(c.cached)-1].page, nil
	}
	clear(d.dirty)
	return nil
}

// Reserve implements drive.Drive. Where there was no space before, the content
// becomes zeros or noise.
func (h *Handle) Reserve(off, n int64) error {
	h.check(off, n)
	d, w := h.disk, h.disk.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.begin(h, "reserves", off/drive.BlockSize, n/drive.BlockSize); err != nil {
		return err
	}
	if h.failed != nil {
		return h.failed
	}
	if d.missing(off/drive.BlockSize, n/drive.BlockSize) == 0 {
		return nil
	}
	if err := d.allocate(off/drive.BlockSize, n/drive.BlockSize); err != nil {
		return err
	}
	fill := &zeroPage
	if d.rand.IntN(2) == 0 {
		fill = &page{}
		for i := range fill {
			fill[i] = byte(d.rand.Uint32())
		}
	}
	w.writes++
	for b := off / drive.BlockSize; b < (off+n)/drive.BlockSize; b++ {
		d.cache(b, fill, w.writes)
	}
	return nil
}

// Discard implements drive.Drive: the space goes back to the filesystem, or
// the hint is not taken.
func (h *Handle) Discard(off, n int64) error {
	h.check(off, n)
	d, w := h.disk, h.disk.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.begin(h, "discards", off/drive.BlockSize, n/drive.BlockSize); err != nil {
		return err
	}
	if d.rand.IntN(4) == 0 {
		return nil
	}
	for b := off / drive.BlockSize; b < (off+n)/drive.BlockSize; b++ {
		delete(d.cells, b)
		delete(d.dirty, b)
	}
	return nil
}

// Size implements drive.Drive.
func (h *Handle) Size() int64 { return h.disk.size }

// Close implements drive.Drive.
func (h *Handle) Close() error {
	h.disk.world.mu.Lock()
	defer h.disk.world.mu.Unlock()
	h.closed = true
	return nil
}

// fail breaks the handle for good. The kernel forgets the pages a failed write
// or flush was about, so the disk's cache may come to nothing as well.
func (h *Handle) fail(doing string, off int64) {
	h.failed = fault.New(fault.Failed, "disk %s: %s at %d", h.disk.name, doing, off)
	h.disk.broken = true
	if h.disk.rand.IntN(2) == 0 {
		h.disk.loseCache(h.disk.rand)
	}
}

// String describes the disk for a trace.
func (d *Disk) String() string {
	return fmt.Sprintf("%s (%d MiB, %d blocks written)", d.name, d.size>>20, len(d.cells))
}
