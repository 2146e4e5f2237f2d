package bare

import (
	"encoding/binary"

	"steadfast/fault"
)

// The host-target interface, as riscv-tests and riscv-arch-test use it: a word with a
// device in its highest byte, a command in the next, and 48 bits for the command.

const (
	deviceCalls   = 0
	deviceConsole = 1
	consoleWrite  = 1

	// The system calls that are proxied, by Linux's numbers.
	callWrite = 64
	callExit  = 93
	// noCall is -ENOSYS.
	noCall = ^uint64(38) + 1

	// writeMax bounds what one call writes, in bytes.
	writeMax = 1 << 20
)

// word reads a word of memory.
func (m *Machine) word(at uint64) uint64 {
	return binary.LittleEndian.Uint64(m.ram.Bytes()[at-Base:])
}

// setWord writes one.
func (m *Machine) setWord(at, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	m.ram.Write(b[:], at)
}

// command does what the word in tohost asks for, and takes it away. It returns the value
// that ends the program, 0 if it goes on.
func (m *Machine) command(v uint64) (end uint64, err error) {
	device, what, value := v>>56, v>>48&0xff, v&(1<<48-1)
	switch {
	case device == deviceCalls && value&1 != 0:
		return value, nil
	case device == deviceConsole && what == consoleWrite:
		_, err = m.console.Write([]byte{byte(value)})
	case device == deviceCalls && what == 0 && value%8 == 0 && m.ram.Contains(value, 64):
		end, err = m.call(value)
	default:
		err = fault.New(fault.Invalid, "it asks its host for 0x%x by tohost; only its end, characters for the console and the calls write and exit are served", v)
	}
	m.setWord(m.toHost, 0)
	return end, err
}

// call serves the system call whose number and arguments are at a place, and puts the
// result in the place of the number.
func (m *Machine) call(at uint64) (end uint64, err error) {
	result := noCall
	switch number, a0, a1, a2 := m.word(at), m.word(at+8), m.word(at+16), m.word(at+24); number {
	case callExit:
		return a0<<1 | 1, nil
	case callWrite:
		n := min(a2, writeMax)
		if a0 != 1 && a0 != 2 || !m.ram.Contains(a1, n) {
			break
		}
		_, err = m.console.Write(m.ram.Bytes()[a1-Base:][:n])
		result = n
	}
	m.setWord(at, result)
	if m.fromHost != 0 {
		m.setWord(m.fromHost, 1)
	}
	return 0, err
}
