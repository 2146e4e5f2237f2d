package riscv

import "math/bits"

// The RISC-V Supervisor Binary Interface, version 2.0, as the machine itself has it: an
// ecall from S mode is an instruction that does what it was asked for, and is retired.

// Calls is what SBI asks of the machine. What is asked for happens at Hart.Count.
type Calls interface {
	// ConsoleWrite takes bytes for the console, and tells how many. They are not kept.
	ConsoleWrite(p []byte) int
	// ConsoleRead fills p with what there is of the console's input, and tells how much.
	ConsoleRead(p []byte) int
	// SystemReset is asked to power the machine off or to start it anew. It is expected
	// to call Hart.Stop; what the guest does if it does not is its own affair.
	SystemReset(kind Reset, reason uint32)
}

// Reset is how a guest wants to end. SBI 2.0, System Reset Extension.
type Reset uint32

// Kinds of SystemReset.
const (
	ResetShutdown Reset = iota
	ResetCold
	ResetWarm
)

// Extensions.
const (
	sbiPutchar  = 0x01
	sbiGetchar  = 0x02
	sbiSetTimer = 0x00
	sbiShutdown = 0x08
	sbiBase     = 0x10
	sbiTime     = 0x54494d45
	sbiIPI      = 0x735049
	sbiRfence   = 0x52464e43
	sbiHSM      = 0x48534d
	sbiSRST     = 0x53525354
	sbiDBCN     = 0x4442434e

	sbiVersion = 2 << 24
	// sbiImplementation is a number that no implementation has; its version is ours.
	sbiImplementation        = 0x73746661
	sbiImplementationVersion = 1
)

// Errors.
const (
	sbiNotSupported     = -2
	sbiInvalidParam     = -3
	sbiAlreadyAvailable = -6
)

// consoleChunk bounds what one call moves, in bytes: the guest asks again for the rest.
const consoleChunk = 4096

// sbi serves the call in a7 and a6.
func (h *Hart) sbi() {
	extension, function := h.x[17], h.x[16]
	var err int64
	var value uint64
	switch extension {
	case sbiSetTimer:
		h.setTimer(h.x[10])
		h.x[10] = 0
		return
	case sbiPutchar:
		h.calls.ConsoleWrite([]byte{byte(h.x[10])})
		h.x[10] = 0
		return
	case sbiGetchar:
		h.x[10] = h.getchar()
		return
	case sbiShutdown:
		h.calls.SystemReset(ResetShutdown, 0)
		return
	case sbiBase:
		value, err = h.sbiBase(function)
	case sbiTime:
		if err = sbiNotSupported; function == 0 {
			h.setTimer(h.x[10])
			err = 0
		}
	case sbiIPI:
		if err = sbiNotSupported; function == 0 {
			err = h.sbiIPI()
		}
	case sbiRfence:
		// Translations are never stale, on this only hart.
		if err = sbiNotSupported; function < 3 {
			err = hartMask(h.x[10], h.x[11])
		}
	case sbiHSM:
		value, err = h.sbiHSM(function)
	case sbiSRST:
		err = h.sbiSRST(function)
	case sbiDBCN:
		value, err = h.sbiDBCN(function)
	default:
		err = sbiNotSupported
	}
	h.x[10], h.x[11] = uint64(err), value
}

func (h *Hart) getchar() uint64 {
	var b [1]byte
	if h.calls.ConsoleRead(b[:]) == 1 {
		return uint64(b[0])
	}
	return ones
}

func (h *Hart) sbiBase(function uint64) (uint64, int64) {
	switch function {
	case 0:
		return sbiVersion, 0
	case 1:
		return sbiImplementation, 0
	case 2:
		return sbiImplementationVersion, 0
	case 3:
		switch h.x[10] {
		case sbiSetTimer, sbiPutchar, sbiGetchar, sbiShutdown, sbiBase, sbiTime, sbiIPI, sbiRfence, sbiHSM, sbiSRST, sbiDBCN:
			return 1, 0
		}
		return 0, 0
	case 4, 5, 6: // mvendorid, marchid, mimpid
		return 0, 0
	}
	return 0, sbiNotSupported
}

// hartMask judges a mask of harts and the hart its bit 0 stands for: all ones means all.
func hartMask(mask, base uint64) int64 {
	if base == ones || mask == 0 || base == 0 && bits.Len64(mask) == 1 {
		return 0
	}
	return sbiInvalidParam
}

func (h *Hart) sbiIPI() int64 {
	mask, base := h.x[10], h.x[11]
	err := hartMask(mask, base)
	if err == 0 && (base == ones || mask != 0) {
		h.soft |= irqSSI
		h.attention = true
	}
	return err
}

func (h *Hart) sbiHSM(function uint64) (uint64, int64) {
	const getStatus, suspend = 2, 3
	switch {
	case function == 0: // start
		if h.x[10] == 0 {
			return 0, sbiAlreadyAvailable
		}
		return 0, sbiInvalidParam
	case function == getStatus && h.x[10] == 0:
		return 0, 0 // started
	case function == getStatus:
		return 0, sbiInvalidParam
	case function == suspend && uint32(h.x[10]) == 0: // the default retentive suspend is WFI
		h.waiting, h.attention = true, true
		return 0, 0
	}
	return 0, sbiNotSupported
}

func (h *Hart) sbiSRST(function uint64) int64 {
	if function != 0 {
		return sbiNotSupported
	}
	kind, reason := h.x[10], h.x[11]
	if kind > uint64(ResetWarm) || reason > 1 {
		return sbiInvalidParam
	}
	h.calls.SystemReset(Reset(kind), uint32(reason))
	return 0
}

// sbiDBCN is the debug console. Its memory is given by physical addresses; the high half
// must be zero on RV64.
func (h *Hart) sbiDBCN(function uint64) (uint64, int64) {
	if function == 2 {
		h.calls.ConsoleWrite([]byte{byte(h.x[10])})
		return 0, 0
	}
	if function > 2 {
		return 0, sbiNotSupported
	}
	n, addr := h.x[10], h.x[11]
	if h.x[12] != 0 || !h.ram.Contains(addr, n) {
		return 0, sbiInvalidParam
	}
	var buf [consoleChunk]byte
	p := buf[:min(n, consoleChunk)]
	if function == 0 {
		h.ram.Read(p, addr)
		return uint64(h.calls.ConsoleWrite(p)), 0
	}
	got := h.calls.ConsoleRead(p)
	h.ram.Write(p[:got], addr)
	return uint64(got), 0
}
