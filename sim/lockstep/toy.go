package lockstep

import (
	"encoding/binary"
	"fmt"
	"slices"

	"steadfast/compute/device"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
)

// Ports of a toy.
const (
	portConsole device.Port = 1
	portDisk    device.Port = 3
	portNet     device.Port = 4
)

// Kinds of what goes to the disk.
const (
	toRead  uint8 = 1
	toWrite uint8 = 2
	toFlush uint8 = 3
)

// sectors of the disk: the first half holds what clients were promised.
const (
	sectors  = 16
	promises = sectors / 2
	clients  = 3
	shutdown = 255 // a client's number that switches the machine off
)

// cell is what a sector holds: who wrote it, which promise it is (0: none), and what
// the machine was then.
type cell struct {
	Life   uint32
	Serial uint64
	Chain  uint64
}

const cellSize = 20

func (c cell) bytes() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(make([]byte, 0, cellSize), c.Life)
	return le.AppendUint64(le.AppendUint64(b, c.Serial), c.Chain)
}

func cellOf(b []byte) cell {
	le := binary.LittleEndian
	return cell{le.Uint32(b), le.Uint64(b[4:]), le.Uint64(b[12:])}
}

// request is what a client wants: a promise, once.
type request struct {
	client uint8
	number uint32
}

// promise is the answer: the serial tells its place among all, and the chain is a digest of
// all that the machine has lived through until then.
type promise struct {
	request
	cell
}

func (p promise) bytes() []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{p.client}, p.number), p.cell.bytes()...)
}

func promiseOf(b []byte) promise {
	return promise{request{b[0], binary.LittleEndian.Uint32(b[1:])}, cellOf(b[5:])}
}

// op is in flight.
type op struct {
	id     uint64
	kind   uint8
	sector int
	cell   cell    // to write, or expected
	whose  request // whose promise it is
}

// toy is a machine: a function of its inputs at their counts, as a real one is, and of
// nothing else. Whatever happens to it shows in its chain.
type toy struct {
	life   uint32
	count  uint64
	chain  uint64
	inputs uint64 // that it was given
	serial uint64
	id     uint64
	said   uint64 // bytes to the console
	booted int    // sectors that it has asked for; ready at sectors and none in flight
	queue  []request
	last   [clients]promise // that were given
	begun  [clients]uint32  // the number of what is in the making
	ops    []op
	known  [sectors]cell
	going  bool // down
	ended  bool
	bad    string // what cannot be
	out    []lockstep.Out
	// caused says of each output how many inputs came before, and whether one caused it.
	// It is no part of the state.
	caused    []cause
	delivered bool
}

type cause struct {
	inputs uint64
	input  bool
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func newToy(life uint32, seed uint64) *toy {
	return &toy{life: life, chain: seed, known: [sectors]cell{}}
}

// clone is the machine as it is saved and restored.
func (t *toy) clone() *toy {
	c := *t
	c.queue, c.ops, c.out, c.caused = slices.Clone(t.queue), slices.Clone(t.ops), nil, nil
	return &c
}

// hash is of all that it goes on from.
func (t *toy) hash() (h machine.Hash) {
	a := t.chain
	add := func(list ...uint64) {
		for _, x := range list {
			a = mix(a ^ x)
		}
	}
	add(t.count, t.inputs, t.serial, t.id, t.said, uint64(t.booted), uint64(len(t.queue)))
	for _, r := range t.queue {
		add(uint64(r.client), uint64(r.number))
	}
	for i, p := range t.last {
		add(uint64(p.number), p.Serial, p.Chain, uint64(t.begun[i]))
	}
	for _, o := range t.ops {
		add(o.id, uint64(o.kind), uint64(o.sector), o.cell.Chain)
	}
	for _, c := range t.known {
		add(c.Serial, c.Chain)
	}
	binary.LittleEndian.PutUint64(h[:], a)
	binary.LittleEndian.PutUint64(h[8:], mix(a))
	return h
}

func (t *toy) emit(o lockstep.Out) {
	o.At = t.count
	t.out = append(t.out, o)
	t.caused = append(t.caused, cause{t.inputs, t.delivered})
}

// take returns what came out.
func (t *toy) take() (out []lockstep.Out, caused []cause) {
	out, caused = t.out, t.caused
	t.out, t.caused = nil, nil
	return out, caused
}

func (t *toy) busy(sector int) bool {
	return slices.ContainsFunc(t.ops, func(o op) bool { return o.sector == sector })
}

func (t *toy) begin(o op) {
	t.id++
	o.id = t.id
	t.ops = append(t.ops, o)
	t.emit(o.output())
}

func (o op) output() lockstep.Out {
	out := lockstep.Out{Class: lockstep.Change}
	if o.kind == toRead {
		out.Class = lockstep.Ask
	}
	out.Port, out.Kind, out.ID, out.Offset = portDisk, o.kind, o.id, int64(o.sector)
	if o.kind == toWrite {
		out.Data = o.cell.bytes()
	}
	return out
}

// pending is what was asked for and not answered.
func (t *toy) pending() (list []lockstep.Out) {
	for _, o := range t.ops {
		list = append(list, o.output())
	}
	return list
}

func (t *toy) say(b byte) {
	out := lockstep.Out{Class: lockstep.Stream}
	out.Port, out.ID, out.Data = portConsole, t.said, []byte{b}
	t.said++
	t.emit(out)
}

func (t *toy) send(p promise) {
	out := lockstep.Out{Class: lockstep.Stream}
	out.Port, out.Data = portNet, p.bytes()
	t.emit(out)
}

// run executes to a count.
func (t *toy) run(to uint64) {
	for t.count < to && !t.ended {
		t.chain = mix(t.chain ^ t.count)
		switch {
		case t.booted < sectors:
			t.begin(op{kind: toRead, sector: t.booted})
			t.booted++
		case t.id < sectors || len(t.ops) > 0 && t.ops[0].id <= sectors: // it boots
		case t.going && len(t.ops) == 0:
			t.say('.')
			t.ended = true
		case len(t.ops) < 6 && !t.going:
			t.act(t.chain&63, t.chain>>6)
		}
		t.count++
	}
}

// act is what an instruction does.
func (t *toy) act(what, r uint64) {
	switch {
	case what < 8 && len(t.queue) > 0:
		t.serve(t.queue[0])
	case what == 8 && r&7 == 0:
		if s := int(r>>8) % sectors; !t.busy(s) {
			t.begin(op{kind: toRead, sector: s, cell: t.known[s]})
		}
	case what == 9 && r&15 == 0:
		t.say(byte(r >> 8))
	case what == 10 && r&15 == 0:
		t.begin(op{kind: toFlush, sector: -1})
	case what == 11 && r&7 == 0:
		if s := promises + int(r>>8)%promises; !t.busy(s) {
			t.begin(op{kind: toWrite, sector: s, cell: cell{t.life, 0, t.chain}})
		}
	}
}

// serve begins what a client wants, or answers again what was wanted again.
func (t *toy) serve(r request) {
	switch last := t.last[r.client]; {
	case r.number == last.number:
		t.send(last)
	case r.number <= t.begun[r.client]:
	default:
		s := int((t.serial + 1) % promises)
		if t.busy(s) {
			return
		}
		t.serial++
		t.begun[r.client] = r.number
		t.chain = mix(t.chain ^ uint64(r.client)<<32 ^ uint64(r.number))
		t.begin(op{kind: toWrite, sector: s, cell: cell{t.life, t.serial, t.chain}, whose: r})
	}
	t.queue = t.queue[1:]
}

// deliver takes an input.
func (t *toy) deliver(in *device.Input) {
	t.inputs++
	t.delivered = true
	defer func() { t.delivered = false }()
	t.chain = mix(t.chain ^ in.ID ^ uint64(in.Port)<<40 ^ in.At<<20)
	if t.ended {
		return
	}
	if in.Port == portNet {
		r := request{in.Data[0], binary.LittleEndian.Uint32(in.Data[1:])}
		if r.client == shutdown {
			t.going = true
		} else if len(t.queue) < 8 {
			t.queue = append(t.queue, r)
		}
		return
	}
	i := slices.IndexFunc(t.ops, func(o op) bool { return o.id == in.ID })
	if i < 0 {
		return
	}
	o := t.ops[i]
	t.ops = slices.Delete(t.ops, i, i+1)
	switch o.kind {
	case toRead:
		var c cell
		if len(in.Data) == cellSize { // else this is not the machine that has asked
			c = cellOf(in.Data)
		}
		t.chain = mix(t.chain ^ c.Chain)
		switch {
		case o.id <= sectors: // it boots
			t.known[o.sector] = c
			if t.serial = max(t.serial, c.Serial); t.booted == sectors && len(t.ops) == 0 {
				t.say('!')
			}
		case c != o.cell:
			t.bad = fmt.Sprintf("sector %d has %+v, and %+v was written there", o.sector, c, o.cell)
		}
	case toWrite:
		t.known[o.sector] = o.cell
		if o.cell.Serial != 0 {
			p := promise{o.whose, o.cell}
			t.last[o.whose.client] = p
			t.send(p)
		}
	}
}
