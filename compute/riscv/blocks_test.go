package riscv

import (
	"testing"

	"steadfast/compute/riscv/asm"
)

// TestDecodedIsBounded: code that is laid out to fall into one place of the hash makes no
// long chains there, and what blocks cost besides their instructions counts.
func TestDecodedIsBounded(t *testing.T) {
	const stride = 2 * hashSize // of addresses with one place
	h, _ := newTest(t, 160<<20, Options{})
	blocks := 0
	for at := uint64(testBase); at+stride < testBase+160<<20; at += stride {
		put(h, at, asm.Jal(0, stride))
		blocks++
	}
	h.Reset(testBase, 0, 0)
	longest := 0
	for n := range uint64(blocks) {
		h.Run(n + 1)
		chain := 0
		for b := h.hash[hashOf(testBase)]; b != nil; b = b.next {
			chain++
		}
		longest = max(longest, chain)
	}
	if longest != chainMax {
		t.Errorf("%d blocks: as many as %d in one place, want %d", blocks, longest, chainMax)
	}
	total := 0
	for _, b := range h.hash {
		for ; b != nil; b = b.next {
			total += len(b.ops) + blockCost
		}
	}
	if h.decoded != total {
		t.Errorf("%d is counted, of %d", h.decoded, total)
	}
}
