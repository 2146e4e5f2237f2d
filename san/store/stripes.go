package store

import "sync"

// stripeCount is how many independently locked parts a volume's blocks have.
const stripeCount = 256

// stripes keeps writers that read before they write (parts of blocks, compare
// and write) apart from other writers of the same blocks. Writers of whole
// blocks share: the log orders them. Block b belongs to stripe b mod
// stripeCount, and stripes are taken in ascending order.
type stripes [stripeCount]sync.RWMutex

// span is the stripes of a run of blocks: [first, last] of block numbers.
type span struct {
	from, to  uint64 // blocks, to is past the end
	lone      bool   // this writer reads first: it must be alone on all of them
	loneFirst bool   // or on the first block only
	loneLast  bool   // or on the last
}

// each calls fn for the span's stripes in ascending order, with whether the
// holder must be alone there.
func (s span) each(fn func(i int, alone bool)) {
	n := s.to - s.from
	first, last := int(s.from%stripeCount), int((s.to-1)%stripeCount)
	alone := func(i int) bool {
		return s.lone || s.loneFirst && i == first || s.loneLast && i == last
	}
	switch {
	case n >= stripeCount:
		for i := range stripeCount {
			fn(i, alone(i))
		}
	case first <= last:
		for i := first; i <= last; i++ {
			fn(i, alone(i))
		}
	default:
		for i := 0; i <= last; i++ {
			fn(i, alone(i))
		}
		for i := first; i < stripeCount; i++ {
			fn(i, alone(i))
		}
	}
}

// lock takes a span's stripes and returns what gives them back.
func (l *stripes) lock(s span) (unlock func()) {
	s.each(func(i int, alone bool) {
		if alone {
			l[i].Lock()
		} else {
			l[i].RLock()
		}
	})
	return func() {
		s.each(func(i int, alone bool) {
			if alone {
				l[i].Unlock()
			} else {
				l[i].RUnlock()
			}
		})
	}
}
