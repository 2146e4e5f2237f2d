package riscv

import (
	"encoding/binary"
	"math/bits"
)

// execute runs instructions until Count is bound or somebody asks for attention. Both
// are seen between two blocks, and a block that would go past bound is cut there: its
// instructions follow each other, so that its first ones are a block as well.
//
// It is one function, and long, because this is the only shape in which the compiler
// makes one jump table of it and keeps its variables in registers.
func (h *Hart) execute(bound uint64) {
	var (
		x             = &h.x
		reads, writes *table
		b, from       *block
		link          **block
		j             *jump
		ops           []op
		o             *op
		at            int
		pc, was       uint64
		how           outcome
	)

enter: // h.pc is the next instruction's; anything may have changed.
	if h.count >= bound || h.attention {
		return
	}
	pc = h.pc
	reads, writes = h.reads, h.writes
	from = nil

find: // pc is the next instruction's; from, which is at was, wants to know its block in link.
	if h.count >= bound {
		h.pc = pc
		return
	}
	j = &h.jumps[jumpOf(pc)]
	if j.pc == pc && j.key == h.key {
		b = j.to
	} else if b = h.lookup(pc); b == nil {
		h.pc = pc
		h.trap()
		goto enter
	}
	if from != nil {
		// The same virtual page, so the same page of RAM, and dropped together.
		if (was^pc)>>12 == 0 && !b.astride && !from.astride {
			*link = b
		}
		from = nil
	}

run: // b is the block at pc.
	ops = b.ops
	if left := bound - h.count; uint64(len(ops)) > left {
		if left == 0 {
			h.pc = pc
			return
		}
		ops = ops[:left]
	}
	for i := range ops {
		o := &ops[i]
		switch o.code {
		case opNop, opFence:
		case opLui:
			x[o.rd] = uint64(o.imm)
		case opAuipc:
			x[o.rd] = pc + uint64(o.imm)
		case opJal:
			x[o.rd] = pc + uint64(o.off) + uint64(o.len)
			goto taken
		case opJalr:
			to := (x[o.rs1] + uint64(o.imm)) &^ 1
			x[o.rd] = pc + uint64(o.off) + uint64(o.len)
			h.count += uint64(len(ops))
			pc = to
			goto find
		case opBeq:
			if x[o.rs1] == x[o.rs2] {
				goto taken
			}
			goto through
		case opBne:
			if x[o.rs1] != x[o.rs2] {
				goto taken
			}
			goto through
		case opBlt:
			if int64(x[o.rs1]) < int64(x[o.rs2]) {
				goto taken
			}
			goto through
		case opBge:
			if int64(x[o.rs1]) >= int64(x[o.rs2]) {
				goto taken
			}
			goto through
		case opBltu:
			if x[o.rs1] < x[o.rs2] {
				goto taken
			}
			goto through
		case opBgeu:
			if x[o.rs1] >= x[o.rs2] {
				goto taken
			}
			goto through
		case opLb:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xfff {
				x[o.rd] = uint64(int64(int8(e.page[va&pageMask])))
				continue
			}
			v, got := h.load(va, 1, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = uint64(int64(int8(v)))
			if got == left {
				at = i
				goto leave
			}
		case opLh:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xffe {
				x[o.rd] = uint64(int64(int16(binary.LittleEndian.Uint16(e.page[va&0xffe:]))))
				continue
			}
			v, got := h.load(va, 2, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = uint64(int64(int16(v)))
			if got == left {
				at = i
				goto leave
			}
		case opLw:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xffc {
				x[o.rd] = uint64(int64(int32(binary.LittleEndian.Uint32(e.page[va&0xffc:]))))
				continue
			}
			v, got := h.load(va, 4, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = uint64(int64(int32(v)))
			if got == left {
				at = i
				goto leave
			}
		case opLd:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xff8 {
				x[o.rd] = binary.LittleEndian.Uint64(e.page[va&0xff8:])
				continue
			}
			v, got := h.load(va, 8, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = v
			if got == left {
				at = i
				goto leave
			}
		case opLbu:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xfff {
				x[o.rd] = uint64(e.page[va&pageMask])
				continue
			}
			v, got := h.load(va, 1, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = v
			if got == left {
				at = i
				goto leave
			}
		case opLhu:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xffe {
				x[o.rd] = uint64(binary.LittleEndian.Uint16(e.page[va&0xffe:]))
				continue
			}
			v, got := h.load(va, 2, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = v
			if got == left {
				at = i
				goto leave
			}
		case opLwu:
			va := x[o.rs1] + uint64(o.imm)
			if e := &reads.entries[va>>12%tlbSize]; e.tag == va&^0xffc {
				x[o.rd] = uint64(binary.LittleEndian.Uint32(e.page[va&0xffc:]))
				continue
			}
			v, got := h.load(va, 4, i)
			if got == faulted {
				at = i
				goto fault
			}
			x[o.rd] = v
			if got == left {
				at = i
				goto leave
			}
		case opSb:
			va := x[o.rs1] + uint64(o.imm)
			if e := &writes.entries[va>>12%tlbSize]; e.tag == va&^0xfff && e.page != h.reservedPage {
				e.page[va&pageMask] = byte(x[o.rs2])
				continue
			}
			if how = h.store(va, 1, x[o.rs2], i); how != done {
				at = i
				goto out
			}
		case opSh:
			va := x[o.rs1] + uint64(o.imm)
			if e := &writes.entries[va>>12%tlbSize]; e.tag == va&^0xffe && e.page != h.reservedPage {
				binary.LittleEndian.PutUint16(e.page[va&0xffe:], uint16(x[o.rs2]))
				continue
			}
			if how = h.store(va, 2, x[o.rs2], i); how != done {
				at = i
				goto out
			}
		case opSw:
			va := x[o.rs1] + uint64(o.imm)
			if e := &writes.entries[va>>12%tlbSize]; e.tag == va&^0xffc && e.page != h.reservedPage {
				binary.LittleEndian.PutUint32(e.page[va&0xffc:], uint32(x[o.rs2]))
				continue
			}
			if how = h.store(va, 4, x[o.rs2], i); how != done {
				at = i
				goto out
			}
		case opSd:
			va := x[o.rs1] + uint64(o.imm)
			if e := &writes.entries[va>>12%tlbSize]; e.tag == va&^0xff8 && e.page != h.reservedPage {
				binary.LittleEndian.PutUint64(e.page[va&0xff8:], x[o.rs2])
				continue
			}
			if how = h.store(va, 8, x[o.rs2], i); how != done {
				at = i
				goto out
			}
		case opAddi:
			x[o.rd] = x[o.rs1] + uint64(o.imm)
		case opSlti:
			x[o.rd] = truth(int64(x[o.rs1]) < o.imm)
		case opSltiu:
			x[o.rd] = truth(x[o.rs1] < uint64(o.imm))
		case opXori:
			x[o.rd] = x[o.rs1] ^ uint64(o.imm)
		case opOri:
			x[o.rd] = x[o.rs1] | uint64(o.imm)
		case opAndi:
			x[o.rd] = x[o.rs1] & uint64(o.imm)
		case opSlli:
			x[o.rd] = x[o.rs1] << (o.imm & 63)
		case opSrli:
			x[o.rd] = x[o.rs1] >> (o.imm & 63)
		case opSrai:
			x[o.rd] = uint64(int64(x[o.rs1]) >> (o.imm & 63))
		case opAddiw:
			x[o.rd] = sext32(x[o.rs1] + uint64(o.imm))
		case opSlliw:
			x[o.rd] = sext32(x[o.rs1] << (o.imm & 31))
		case opSrliw:
			x[o.rd] = sext32(uint64(uint32(x[o.rs1]) >> (o.imm & 31)))
		case opSraiw:
			x[o.rd] = uint64(int64(int32(x[o.rs1]) >> (o.imm & 31)))
		case opAdd:
			x[o.rd] = x[o.rs1] + x[o.rs2]
		case opSub:
			x[o.rd] = x[o.rs1] - x[o.rs2]
		case opSll:
			x[o.rd] = x[o.rs1] << (x[o.rs2] & 63)
		case opSlt:
			x[o.rd] = truth(int64(x[o.rs1]) < int64(x[o.rs2]))
		case opSltu:
			x[o.rd] = truth(x[o.rs1] < x[o.rs2])
		case opXor:
			x[o.rd] = x[o.rs1] ^ x[o.rs2]
		case opSrl:
			x[o.rd] = x[o.rs1] >> (x[o.rs2] & 63)
		case opSra:
			x[o.rd] = uint64(int64(x[o.rs1]) >> (x[o.rs2] & 63))
		case opOr:
			x[o.rd] = x[o.rs1] | x[o.rs2]
		case opAnd:
			x[o.rd] = x[o.rs1] & x[o.rs2]
		case opAddw:
			x[o.rd] = sext32(x[o.rs1] + x[o.rs2])
		case opSubw:
			x[o.rd] = sext32(x[o.rs1] - x[o.rs2])
		case opSllw:
			x[o.rd] = sext32(x[o.rs1] << (x[o.rs2] & 31))
		case opSrlw:
			x[o.rd] = sext32(uint64(uint32(x[o.rs1]) >> (x[o.rs2] & 31)))
		case opSraw:
			x[o.rd] = uint64(int64(int32(x[o.rs1]) >> (x[o.rs2] & 31)))
		case opMul:
			x[o.rd] = x[o.rs1] * x[o.rs2]
		case opMulh:
			x[o.rd] = mulh(x[o.rs1], x[o.rs2])
		case opMulhsu:
			x[o.rd] = mulhsu(x[o.rs1], x[o.rs2])
		case opMulhu:
			x[o.rd] = mulhu(x[o.rs1], x[o.rs2])
		case opDiv:
			x[o.rd] = div(x[o.rs1], x[o.rs2])
		case opDivu:
			x[o.rd] = divu(x[o.rs1], x[o.rs2])
		case opRem:
			x[o.rd] = rem(x[o.rs1], x[o.rs2])
		case opRemu:
			x[o.rd] = remu(x[o.rs1], x[o.rs2])
		case opMulw:
			x[o.rd] = sext32(x[o.rs1] * x[o.rs2])
		case opDivw:
			x[o.rd] = divw(x[o.rs1], x[o.rs2])
		case opDivuw:
			x[o.rd] = divuw(x[o.rs1], x[o.rs2])
		case opRemw:
			x[o.rd] = remw(x[o.rs1], x[o.rs2])
		case opRemuw:
			x[o.rd] = remuw(x[o.rs1], x[o.rs2])
		case opSh1add:
			x[o.rd] = x[o.rs1]<<1 + x[o.rs2]
		case opSh2add:
			x[o.rd] = x[o.rs1]<<2 + x[o.rs2]
		case opSh3add:
			x[o.rd] = x[o.rs1]<<3 + x[o.rs2]
		case opAddUw:
			x[o.rd] = uint64(uint32(x[o.rs1])) + x[o.rs2]
		case opSh1addUw:
			x[o.rd] = uint64(uint32(x[o.rs1]))<<1 + x[o.rs2]
		case opSh2addUw:
			x[o.rd] = uint64(uint32(x[o.rs1]))<<2 + x[o.rs2]
		case opSh3addUw:
			x[o.rd] = uint64(uint32(x[o.rs1]))<<3 + x[o.rs2]
		case opSlliUw:
			x[o.rd] = uint64(uint32(x[o.rs1])) << (o.imm & 63)
		case opAndn:
			x[o.rd] = x[o.rs1] &^ x[o.rs2]
		case opOrn:
			x[o.rd] = x[o.rs1] | ^x[o.rs2]
		case opXnor:
			x[o.rd] = ^(x[o.rs1] ^ x[o.rs2])
		case opClz:
			x[o.rd] = uint64(bits.LeadingZeros64(x[o.rs1]))
		case opCtz:
			x[o.rd] = uint64(bits.TrailingZeros64(x[o.rs1]))
		case opCpop:
			x[o.rd] = ones64(x[o.rs1])
		case opClzw:
			x[o.rd] = uint64(bits.LeadingZeros32(uint32(x[o.rs1])))
		case opCtzw:
			x[o.rd] = uint64(bits.TrailingZeros32(uint32(x[o.rs1])))
		case opCpopw:
			x[o.rd] = ones64(uint64(uint32(x[o.rs1])))
		case opMax:
			x[o.rd] = uint64(max(int64(x[o.rs1]), int64(x[o.rs2])))
		case opMaxu:
			x[o.rd] = max(x[o.rs1], x[o.rs2])
		case opMin:
			x[o.rd] = uint64(min(int64(x[o.rs1]), int64(x[o.rs2])))
		case opMinu:
			x[o.rd] = min(x[o.rs1], x[o.rs2])
		case opSextB:
			x[o.rd] = uint64(int64(int8(x[o.rs1])))
		case opSextH:
			x[o.rd] = uint64(int64(int16(x[o.rs1])))
		case opZextH:
			x[o.rd] = uint64(uint16(x[o.rs1]))
		case opRol:
			x[o.rd] = bits.RotateLeft64(x[o.rs1], int(x[o.rs2]&63))
		case opRor:
			x[o.rd] = bits.RotateLeft64(x[o.rs1], -int(x[o.rs2]&63))
		case opRori:
			x[o.rd] = bits.RotateLeft64(x[o.rs1], -int(o.imm&63))
		case opRolw:
			x[o.rd] = sext32(uint64(bits.RotateLeft32(uint32(x[o.rs1]), int(x[o.rs2]&31))))
		case opRorw:
			x[o.rd] = sext32(uint64(bits.RotateLeft32(uint32(x[o.rs1]), -int(x[o.rs2]&31))))
		case opRoriw:
			x[o.rd] = sext32(uint64(bits.RotateLeft32(uint32(x[o.rs1]), -int(o.imm&31))))
		case opOrcB:
			x[o.rd] = orcb(x[o.rs1])
		case opRev8:
			x[o.rd] = bits.ReverseBytes64(x[o.rs1])
		case opBclr:
			x[o.rd] = x[o.rs1] &^ (1 << (x[o.rs2] & 63))
		case opBclri:
			x[o.rd] = x[o.rs1] &^ (1 << (o.imm & 63))
		case opBext:
			x[o.rd] = x[o.rs1] >> (x[o.rs2] & 63) & 1
		case opBexti:
			x[o.rd] = x[o.rs1] >> (o.imm & 63) & 1
		case opBinv:
			x[o.rd] = x[o.rs1] ^ 1<<(x[o.rs2]&63)
		case opBinvi:
			x[o.rd] = x[o.rs1] ^ 1<<(o.imm&63)
		case opBset:
			x[o.rd] = x[o.rs1] | 1<<(x[o.rs2]&63)
		case opBseti:
			x[o.rd] = x[o.rs1] | 1<<(o.imm&63)
		case opFlw, opFld, opFsw, opFsd:
			if h.mstatus&statusFS == 0 {
				at = i
				goto illegal
			}
			if how = h.floatAccess(o, i); how != done {
				at = i
				goto out
			}
		case opIllegal:
			at = i
			goto illegal
		default:
			switch {
			case o.code <= opCboZero:
				if how = h.atomic(o, i); how != done {
					at = i
					goto out
				}
			case o.code <= opFcvtDS:
				if !h.float(o) {
					at = i
					goto illegal
				}
			default:
				h.count += uint64(i)
				h.pc = pc + uint64(o.off)
				if !h.system(o) {
					h.trap()
				}
				goto enter
			}
		}
	}
	if len(ops) < len(b.ops) {
		h.count += uint64(len(ops))
		o = &ops[len(ops)-1]
		h.pc = pc + uint64(o.off) + uint64(o.len)
		return
	}

through: // The block's end is reached, or its branch not taken.
	h.count += uint64(len(ops))
	was, pc = pc, pc+b.size
	if b.fall != nil {
		b = b.fall
		goto run
	}
	from, link = b, &b.fall
	goto find

taken: // The jump at the block's end is.
	h.count += uint64(len(ops))
	was, pc = pc, pc+uint64(ops[len(ops)-1].imm)
	if b.taken != nil {
		b = b.taken
		goto run
	}
	from, link = b, &b.taken
	goto find

illegal:
	h.fault = exception{causeIllegal, h.rawAt(b, &ops[at])}
	how = faulted

out:
	if how == left {
		goto leave
	}

fault: // The instruction at at has h.fault.
	o = &ops[at]
	h.count += uint64(at)
	h.pc = pc + uint64(o.off)
	h.trap()
	goto enter

leave: // The instruction at at is done, and those before it are counted.
	o = &ops[at]
	h.count++
	h.pc = pc + uint64(o.off) + uint64(o.len)
	goto enter
}
