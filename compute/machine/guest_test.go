package machine

import "steadfast/compute/machine/machinetest"

// guestMemory is the memory of the tests' guest.
const guestMemory uint64 = MemoryMin

// guestKernel is the guest as a kernel that Load takes.
func guestKernel() []byte { return machinetest.Echo() }
