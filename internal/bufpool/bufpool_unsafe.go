// Package bufpool lends byte buffers whose start is aligned to 4096 bytes, so
// that they can go to a drive opened with O_DIRECT and to a socket without a
// copy in between.
//
// Buffers come in powers of two from 4 KiB to 4 MiB. The pool trusts its
// callers: a buffer put back must no longer be referenced.
package bufpool

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Align is the alignment of every buffer's first byte.
const Align = 4096

const (
	minShift = 12
	maxShift = 22
)

// classes holds free buffers by size; it stores pointers to the first byte so
// that putting one back allocates nothing.
var classes [maxShift - minShift + 1]sync.Pool

// Get returns a buffer of length n, with undefined content and a capacity of
// at least n. Larger sizes than 4 MiB are allocated and not kept.
func Get(n int) []byte {
	c := class(n)
	if c < 0 {
		return Aligned(n)
	}
	if p, _ := classes[c].Get().(*byte); p != nil {
		return unsafe.Slice(p, 1<<(minShift+c))[:n]
	}
	return Aligned(1 << (minShift + c))[:n]
}

// Put gives a buffer from Get back. Other slices are left to the collector.
func Put(b []byte) {
	n := cap(b)
	if n < 1<<minShift || n > 1<<maxShift || n&(n-1) != 0 {
		return
	}
	p := unsafe.SliceData(b[:n])
	if uintptr(unsafe.Pointer(p))%Align != 0 {
		return
	}
	classes[class(n)].Put(p)
}

// Aligned allocates n bytes that start at a multiple of Align.
func Aligned(n int) []byte {
	raw := make([]byte, n+Align)
	skip := 0
	if r := int(uintptr(unsafe.Pointer(unsafe.SliceData(raw))) % Align); r != 0 {
		skip = Align - r
	}
	return raw[skip : skip+n : skip+n]
}

// IsAligned tells whether b starts at a multiple of Align.
func IsAligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align == 0
}

// class returns the index of the smallest class that holds n, or -1.
func class(n int) int {
	if n <= 1<<minShift {
		return 0
	}
	s := bits.Len(uint(n - 1))
	if s > maxShift {
		return -1
	}
	return s - minShift
}
