package memory

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Resident tells of the pages from one on, as many as is is long, which ones the host has memory for
// (mincore(2)). Of the others nobody has ever stored to any, but for those that were swapped out.
// Looking at one that is not would have the host map it, and on a virtual machine that may take
// longer than to read ten that are. If the host does not tell, all are.
func (r *RAM) Resident(first uint32, is []bool) {
	if len(is) == 0 {
		return
	}
	vec := make([]byte, len(is))
	b := r.bytes[uint64(first)*PageSize:][:len(is)*PageSize]
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	for i := range is {
		is[i] = errno != 0 || vec[i]&1 != 0
	}
}
