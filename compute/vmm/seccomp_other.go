//go:build !amd64 && !arm64

package vmm

// auditArch 0: there is no list for this architecture, and no machine is run on it.
const auditArch = 0

var archCalls []uintptr
