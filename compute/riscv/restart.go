package riscv

// Restart is Reset of a hart that has run: its count goes on.
func (h *Hart) Restart(pc, a0, a1 uint64) {
	count := h.count
	h.Reset(pc, a0, a1)
	h.count = count
}

// Pass lets a count pass without an instruction, between two runs.
func (h *Hart) Pass() { h.count++ }
