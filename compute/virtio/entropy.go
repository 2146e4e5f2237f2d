package virtio

import (
	"slices"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

const (
	// EntropyAsk is an Output: it asks for Length random bytes.
	EntropyAsk uint8 = 1
	// EntropyAnswer is an Input: it answers the Output with its ID by Data, as many bytes as
	// were asked for, or fewer. Of an ID that is not in flight it is ignored.
	EntropyAnswer uint8 = 1

	entropyQueueMost = 8
	// EntropyMax is the most that is asked for at once, in bytes: a driver that wants
	// more asks again. 5.4.6
	EntropyMax = 256
)

// Entropy is a source of randomness, which is the world's and in the log. 5.4.
type Entropy struct {
	transport
	lastID uint64
	asked  []asked // in flight, by rising ID
}

type asked struct {
	id   uint64
	head uint16
	into vector
}

func (a asked) output() device.Output {
	return device.Output{Kind: EntropyAsk, ID: a.id, Length: int64(min(a.into.length(), EntropyMax))}
}

// NewEntropy makes up a source of randomness.
func NewEntropy(board device.Board, ram *memory.RAM) *Entropy {
	y := &Entropy{}
	y.begin(y, board, ram, 4, 0, entropyQueueMost)
	return y
}

func (y *Entropy) config() []byte { return nil }

func (y *Entropy) configure(int, []byte) {}

func (y *Entropy) work(int) {
	q := &y.queues[0]
	for left := y.available(q); left > 0; left-- {
		c, ok := y.take(q)
		if !ok {
			return
		}
		if len(c.into) == 0 || len(c.from) > 0 {
			y.fail()
			return
		}
		y.lastID++
		a := asked{y.lastID, c.head, slices.Clone(c.into)}
		y.asked = append(y.asked, a)
		y.board.Emit(a.output())
	}
	y.settle(q)
}

// Deliver takes an answer.
func (y *Entropy) Deliver(in *device.Input) {
	i := slices.IndexFunc(y.asked, func(a asked) bool { return a.id == in.ID })
	if in.Kind != EntropyAnswer || i < 0 {
		return
	}
	a := y.asked[i]
	y.asked = slices.Delete(y.asked, i, i+1)
	p := in.Data[:min(int64(len(in.Data)), a.output().Length)]
	y.scatter(a.into, 0, p)
	y.put(&y.queues[0], a.head, uint32(len(p)))
	y.settle(&y.queues[0])
}

// Pending returns, by rising ID, the outputs whose answers are due.
func (y *Entropy) Pending() []device.Output {
	var all []device.Output
	for _, a := range y.asked {
		all = append(all, a.output())
	}
	return all
}

func (y *Entropy) forget(int) { y.asked = nil }

func (y *Entropy) renew() {}

func (y *Entropy) save(e *device.Encoder) {
	e.U64(y.lastID)
	e.U16(uint16(len(y.asked)))
	for _, a := range y.asked {
		e.U64(a.id)
		e.U16(a.head)
		a.into.save(e)
	}
}

func (y *Entropy) restore(d *device.Decoder) {
	y.lastID = d.U64()
	y.asked = nil
	after := uint64(0)
	for n := d.U16(); n > 0 && d.Err() == nil; n-- {
		a := asked{d.U64(), d.U16(), restoreVector(d, y.ram, entropyQueueMost)}
		if a.id <= after || a.id > y.lastID || len(a.into) == 0 {
			d.Fail("a request for randomness that cannot be")
		}
		after = a.id
		y.asked = append(y.asked, a)
	}
	if y.running() && len(y.asked) != int(y.queues[0].taken()) || !y.running() && len(y.asked) > 0 {
		d.Fail("requests for randomness are not those of their queue")
	}
}
