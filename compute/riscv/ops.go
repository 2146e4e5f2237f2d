package riscv

// code numbers what an instruction does. The order matters: exec.go's switch is dense
// up to opFsd, and the groups behind it are told apart by their bounds.
type code uint16

// The instructions, compressed ones under the name of what they stand for.
const (
	// nothing, and what is no instruction.
	opNop code = iota
	opFence
	opIllegal
	// RV64I: constants, jumps and branches.
	opLui
	opAuipc
	opJal
	opJalr
	opBeq
	opBne
	opBlt
	opBge
	opBltu
	opBgeu
	// loads and stores.
	opLb
	opLh
	opLw
	opLd
	opLbu
	opLhu
	opLwu
	opSb
	opSh
	opSw
	opSd
	// arithmetic with immediates.
	opAddi
	opSlti
	opSltiu
	opXori
	opOri
	opAndi
	opSlli
	opSrli
	opSrai
	opAddiw
	opSlliw
	opSrliw
	opSraiw
	// arithmetic of registers.
	opAdd
	opSub
	opSll
	opSlt
	opSltu
	opXor
	opSrl
	opSra
	opOr
	opAnd
	opAddw
	opSubw
	opSllw
	opSrlw
	opSraw
	// M.
	opMul
	opMulh
	opMulhsu
	opMulhu
	opDiv
	opDivu
	opRem
	opRemu
	opMulw
	opDivw
	opDivuw
	opRemw
	opRemuw
	// Zba, Zbb, Zbs.
	opSh1add
	opSh2add
	opSh3add
	opAddUw
	opSh1addUw
	opSh2addUw
	opSh3addUw
	opSlliUw
	opAndn
	opOrn
	opXnor
	opClz
	opCtz
	opCpop
	opClzw
	opCtzw
	opCpopw
	opMax
	opMaxu
	opMin
	opMinu
	opSextB
	opSextH
	opZextH
	opRol
	opRor
	opRori
	opRolw
	opRorw
	opRoriw
	opOrcB
	opRev8
	opBclr
	opBclri
	opBext
	opBexti
	opBinv
	opBinvi
	opBset
	opBseti
	// F and D: loads and stores.
	opFlw
	opFld
	opFsw
	opFsd
	// A: in the order of decode's table.
	opLrW
	opScW
	opAmoswapW
	opAmoaddW
	opAmoxorW
	opAmoandW
	opAmoorW
	opAmominW
	opAmomaxW
	opAmominuW
	opAmomaxuW
	opLrD
	opScD
	opAmoswapD
	opAmoaddD
	opAmoxorD
	opAmoandD
	opAmoorD
	opAmominD
	opAmomaxD
	opAmominuD
	opAmomaxuD
	opCboZero
	// F.
	opFaddS
	opFsubS
	opFmulS
	opFdivS
	opFsqrtS
	opFmaddS
	opFmsubS
	opFnmsubS
	opFnmaddS
	opFsgnjS
	opFsgnjnS
	opFsgnjxS
	opFminS
	opFmaxS
	opFeqS
	opFltS
	opFleS
	opFclassS
	opFcvtWS
	opFcvtWuS
	opFcvtLS
	opFcvtLuS
	opFcvtSW
	opFcvtSWu
	opFcvtSL
	opFcvtSLu
	opFmvXW
	opFmvWX
	// D.
	opFaddD
	opFsubD
	opFmulD
	opFdivD
	opFsqrtD
	opFmaddD
	opFmsubD
	opFnmsubD
	opFnmaddD
	opFsgnjD
	opFsgnjnD
	opFsgnjxD
	opFminD
	opFmaxD
	opFeqD
	opFltD
	opFleD
	opFclassD
	opFcvtWD
	opFcvtWuD
	opFcvtLD
	opFcvtLuD
	opFcvtDW
	opFcvtDWu
	opFcvtDL
	opFcvtDLu
	opFmvXD
	opFmvDX
	opFcvtSD
	opFcvtDS
	// what ends a block and looks at the hart as a whole.
	opFenceI
	opEcall
	opEbreak
	opSret
	opMret
	opWfi
	opSfenceVma
	opCsrrw
	opCsrrs
	opCsrrc
	opCsrrwi
	opCsrrsi
	opCsrrci
	codes // how many there are
)

// codeNames are the manuals' names.
var codeNames = [codes]string{
	opNop:       "nop",
	opFence:     "fence",
	opIllegal:   "illegal",
	opLui:       "lui",
	opAuipc:     "auipc",
	opJal:       "jal",
	opJalr:      "jalr",
	opBeq:       "beq",
	opBne:       "bne",
	opBlt:       "blt",
	opBge:       "bge",
	opBltu:      "bltu",
	opBgeu:      "bgeu",
	opLb:        "lb",
	opLh:        "lh",
	opLw:        "lw",
	opLd:        "ld",
	opLbu:       "lbu",
	opLhu:       "lhu",
	opLwu:       "lwu",
	opSb:        "sb",
	opSh:        "sh",
	opSw:        "sw",
	opSd:        "sd",
	opAddi:      "addi",
	opSlti:      "slti",
	opSltiu:     "sltiu",
	opXori:      "xori",
	opOri:       "ori",
	opAndi:      "andi",
	opSlli:      "slli",
	opSrli:      "srli",
	opSrai:      "srai",
	opAddiw:     "addiw",
	opSlliw:     "slliw",
	opSrliw:     "srliw",
	opSraiw:     "sraiw",
	opAdd:       "add",
	opSub:       "sub",
	opSll:       "sll",
	opSlt:       "slt",
	opSltu:      "sltu",
	opXor:       "xor",
	opSrl:       "srl",
	opSra:       "sra",
	opOr:        "or",
	opAnd:       "and",
	opAddw:      "addw",
	opSubw:      "subw",
	opSllw:      "sllw",
	opSrlw:      "srlw",
	opSraw:      "sraw",
	opMul:       "mul",
	opMulh:      "mulh",
	opMulhsu:    "mulhsu",
	opMulhu:     "mulhu",
	opDiv:       "div",
	opDivu:      "divu",
	opRem:       "rem",
	opRemu:      "remu",
	opMulw:      "mulw",
	opDivw:      "divw",
	opDivuw:     "divuw",
	opRemw:      "remw",
	opRemuw:     "remuw",
	opSh1add:    "sh1add",
	opSh2add:    "sh2add",
	opSh3add:    "sh3add",
	opAddUw:     "add.uw",
	opSh1addUw:  "sh1add.uw",
	opSh2addUw:  "sh2add.uw",
	opSh3addUw:  "sh3add.uw",
	opSlliUw:    "slli.uw",
	opAndn:      "andn",
	opOrn:       "orn",
	opXnor:      "xnor",
	opClz:       "clz",
	opCtz:       "ctz",
	opCpop:      "cpop",
	opClzw:      "clzw",
	opCtzw:      "ctzw",
	opCpopw:     "cpopw",
	opMax:       "max",
	opMaxu:      "maxu",
	opMin:       "min",
	opMinu:      "minu",
	opSextB:     "sext.b",
	opSextH:     "sext.h",
	opZextH:     "zext.h",
	opRol:       "rol",
	opRor:       "ror",
	opRori:      "rori",
	opRolw:      "rolw",
	opRorw:      "rorw",
	opRoriw:     "roriw",
	opOrcB:      "orc.b",
	opRev8:      "rev8",
	opBclr:      "bclr",
	opBclri:     "bclri",
	opBext:      "bext",
	opBexti:     "bexti",
	opBinv:      "binv",
	opBinvi:     "binvi",
	opBset:      "bset",
	opBseti:     "bseti",
	opFlw:       "flw",
	opFld:       "fld",
	opFsw:       "fsw",
	opFsd:       "fsd",
	opLrW:       "lr.w",
	opScW:       "sc.w",
	opAmoswapW:  "amoswap.w",
	opAmoaddW:   "amoadd.w",
	opAmoxorW:   "amoxor.w",
	opAmoandW:   "amoand.w",
	opAmoorW:    "amoor.w",
	opAmominW:   "amomin.w",
	opAmomaxW:   "amomax.w",
	opAmominuW:  "amominu.w",
	opAmomaxuW:  "amomaxu.w",
	opLrD:       "lr.d",
	opScD:       "sc.d",
	opAmoswapD:  "amoswap.d",
	opAmoaddD:   "amoadd.d",
	opAmoxorD:   "amoxor.d",
	opAmoandD:   "amoand.d",
	opAmoorD:    "amoor.d",
	opAmominD:   "amomin.d",
	opAmomaxD:   "amomax.d",
	opAmominuD:  "amominu.d",
	opAmomaxuD:  "amomaxu.d",
	opCboZero:   "cbo.zero",
	opFaddS:     "fadd.s",
	opFsubS:     "fsub.s",
	opFmulS:     "fmul.s",
	opFdivS:     "fdiv.s",
	opFsqrtS:    "fsqrt.s",
	opFmaddS:    "fmadd.s",
	opFmsubS:    "fmsub.s",
	opFnmsubS:   "fnmsub.s",
	opFnmaddS:   "fnmadd.s",
	opFsgnjS:    "fsgnj.s",
	opFsgnjnS:   "fsgnjn.s",
	opFsgnjxS:   "fsgnjx.s",
	opFminS:     "fmin.s",
	opFmaxS:     "fmax.s",
	opFeqS:      "feq.s",
	opFltS:      "flt.s",
	opFleS:      "fle.s",
	opFclassS:   "fclass.s",
	opFcvtWS:    "fcvt.w.s",
	opFcvtWuS:   "fcvt.wu.s",
	opFcvtLS:    "fcvt.l.s",
	opFcvtLuS:   "fcvt.lu.s",
	opFcvtSW:    "fcvt.s.w",
	opFcvtSWu:   "fcvt.s.wu",
	opFcvtSL:    "fcvt.s.l",
	opFcvtSLu:   "fcvt.s.lu",
	opFmvXW:     "fmv.x.w",
	opFmvWX:     "fmv.w.x",
	opFaddD:     "fadd.d",
	opFsubD:     "fsub.d",
	opFmulD:     "fmul.d",
	opFdivD:     "fdiv.d",
	opFsqrtD:    "fsqrt.d",
	opFmaddD:    "fmadd.d",
	opFmsubD:    "fmsub.d",
	opFnmsubD:   "fnmsub.d",
	opFnmaddD:   "fnmadd.d",
	opFsgnjD:    "fsgnj.d",
	opFsgnjnD:   "fsgnjn.d",
	opFsgnjxD:   "fsgnjx.d",
	opFminD:     "fmin.d",
	opFmaxD:     "fmax.d",
	opFeqD:      "feq.d",
	opFltD:      "flt.d",
	opFleD:      "fle.d",
	opFclassD:   "fclass.d",
	opFcvtWD:    "fcvt.w.d",
	opFcvtWuD:   "fcvt.wu.d",
	opFcvtLD:    "fcvt.l.d",
	opFcvtLuD:   "fcvt.lu.d",
	opFcvtDW:    "fcvt.d.w",
	opFcvtDWu:   "fcvt.d.wu",
	opFcvtDL:    "fcvt.d.l",
	opFcvtDLu:   "fcvt.d.lu",
	opFmvXD:     "fmv.x.d",
	opFmvDX:     "fmv.d.x",
	opFcvtSD:    "fcvt.s.d",
	opFcvtDS:    "fcvt.d.s",
	opFenceI:    "fence.i",
	opEcall:     "ecall",
	opEbreak:    "ebreak",
	opSret:      "sret",
	opMret:      "mret",
	opWfi:       "wfi",
	opSfenceVma: "sfence.vma",
	opCsrrw:     "csrrw",
	opCsrrs:     "csrrs",
	opCsrrc:     "csrrc",
	opCsrrwi:    "csrrwi",
	opCsrrsi:    "csrrsi",
	opCsrrci:    "csrrci",
}

// String returns the manuals' name of the instruction.
func (c code) String() string { return codeNames[c] }

// codeNamed finds an instruction by its name.
func codeNamed(name string) (code, bool) {
	for c, n := range codeNames {
		if n == name {
			return code(c), true
		}
	}
	return 0, false
}

// op is one decoded instruction of a block: 16 bytes, read once each time it runs.
type op struct {
	// imm is the immediate operand. Of a branch and of auipc it is relative to the
	// block's first byte; of what the manuals call funct and rm, see decode.go; of an
	// illegal instruction it is its bits.
	imm  int64
	code code
	// off is the distance from the block's first byte, len the instruction's length.
	off uint16
	// rd is 32 where nothing is to be kept: a register that nobody reads.
	rd, rs1, rs2, len uint8
}

// discard stands for x0 as a destination.
const discard = 32
