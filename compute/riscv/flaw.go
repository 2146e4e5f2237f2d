package riscv

import "strings"

// flaw is Options.Flaw, read. Its zero value breaks nothing.
type flaw struct {
	from, to   code
	swap       bool
	compressed bool
	// dirty: a store leaves the D bit of its page table entry as it is.
	dirty bool
	// value: a page fault tells no address.
	value bool
	// cause: an ecall tells the cause of a breakpoint.
	cause bool
	// boxing: what is not NaN-boxed is taken as it stands.
	boxing bool
	// code: stores leave decoded code as it is.
	code bool
	// translations: stores leave translations as they are.
	translations bool
}

// parseFlaw reads Options.Flaw. What it does not know breaks nothing, and the test that
// asked for it will say that nothing was noticed.
func parseFlaw(text string) flaw {
	switch text {
	case "":
		return flaw{}
	case "dirty":
		return flaw{dirty: true}
	case "tval":
		return flaw{value: true}
	case "cause":
		return flaw{cause: true}
	case "boxing":
		return flaw{boxing: true}
	case "code":
		return flaw{code: true}
	case "translations":
		return flaw{translations: true}
	}
	from, to, _ := strings.Cut(text, "=")
	from, compressed := strings.CutPrefix(from, "c.")
	a, oka := codeNamed(from)
	b, okb := codeNamed(to)
	return flaw{from: a, to: b, swap: oka && okb, compressed: compressed}
}

// apply breaks a decoded instruction.
func (f *flaw) apply(o *op) {
	if f.swap && o.code == f.from && (!f.compressed || o.len == 2) {
		o.code = f.to
	}
}
