package vmm

import "golang.org/x/sys/unix"

// auditArch is what the filter takes calls of: a 32-bit call has other numbers.
const auditArch = unix.AUDIT_ARCH_X86_64

// archCalls are calls that only this architecture has.
var archCalls = []uintptr{unix.SYS_ARCH_PRCTL, unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_TIME}
