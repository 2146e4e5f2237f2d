package vmm

import "golang.org/x/sys/unix"

// auditArch is what the filter takes calls of: a 32-bit call has other numbers.
const auditArch = unix.AUDIT_ARCH_AARCH64

// archCalls are calls that only this architecture has: none.
var archCalls []uintptr
