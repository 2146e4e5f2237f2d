// Package devices is the parts of a machine that stand on its board beside the
// paravirtual ones: a serial port and a real-time clock, as Linux's drivers know
// them. They know nothing of any processor.
//
// They are functions of accesses, Inputs and the guest's time, and nothing else: a
// serial line here has no speed, so that nothing waits for one. The level of an
// interrupt line is the interrupt controller's to save: Restore does not call
// Board.Interrupt. See docs/formats/machine.md.
//
// They trust the machine to ask a clock for its deadline, and lock nothing: a device is
// the machine's goroutine's own.
package devices
