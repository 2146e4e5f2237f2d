package main

// expected are the tests that fail, and why. docs/ISA-TESTS.md has the same list. It is no
// place for what is to be mended: a reason says why the processor is right as it is.
var expected = []struct{ name, reason string }{
	{"rv64i_m/Svadu/svadu_sv48", "it needs Sv48; there is Sv39 only"},
	{"rv64i_m/Svadu/svadu_sv57", "it needs Sv57; there is Sv39 only"},
	{"rv64i_m/B/ctzw-01", "the reference is wrong: QEMU 7.2's ctzw of zero is not 32 but counts on in the upper word"},
}

// reason is why a test is expected to fail, if it is.
func reason(name string) (why string, known bool) {
	for _, e := range expected {
		if e.name == name {
			return e.reason, true
		}
	}
	return "", false
}
