package asm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"maps"
	"slices"
)

// ELF makes a linked program (ELF64, little-endian, RISC-V) of an image that is loaded
// at base and begins there, with symbols at addresses. A test may break its header: it is
// the first 64 bytes, elf.Header64.
func ELF(base uint64, image []byte, symbols map[string]uint64) []byte {
	const headerSize, progSize, sectionSize = 64, 56, 64
	names, table := []byte{0}, []elf.Sym64{{}}
	for _, name := range slices.Sorted(maps.Keys(symbols)) {
		table = append(table, elf.Sym64{
			Name: uint32(len(names)), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_NOTYPE), Shndx: uint16(elf.SHN_ABS), Value: symbols[name],
		})
		names = append(append(names, name...), 0)
	}
	sectionNames := "\x00.symtab\x00.strtab\x00.shstrtab\x00"
	imageAt := uint64(headerSize + progSize)
	tableAt := (imageAt + uint64(len(image)) + 7) &^ 7
	namesAt := tableAt + uint64(len(table))*elf.Sym64Size
	sectionNamesAt := namesAt + uint64(len(names))
	sectionsAt := (sectionNamesAt + uint64(len(sectionNames)) + 7) &^ 7

	var b bytes.Buffer
	// Writing values of fixed size to a buffer cannot fail.
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	to := func(at uint64) { b.Write(make([]byte, at-uint64(b.Len()))) }
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_RISCV), Version: uint32(elf.EV_CURRENT), Entry: base,
		Phoff: headerSize, Shoff: sectionsAt, Ehsize: headerSize, Phentsize: progSize, Phnum: 1, Shentsize: sectionSize, Shnum: 4, Shstrndx: 3,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	put(header)
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W | elf.PF_X), Off: imageAt, Vaddr: base, Paddr: base,
		Filesz: uint64(len(image)), Memsz: uint64(len(image)), Align: 8,
	})
	b.Write(image)
	to(tableAt)
	put(table)
	b.Write(names)
	b.WriteString(sectionNames)
	to(sectionsAt)
	put([]elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_SYMTAB), Off: tableAt, Size: namesAt - tableAt, Link: 2, Info: 1, Addralign: 8, Entsize: elf.Sym64Size},
		{Name: 9, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names)), Addralign: 1},
		{Name: 17, Type: uint32(elf.SHT_STRTAB), Off: sectionNamesAt, Size: uint64(len(sectionNames)), Addralign: 1},
	})
	return b.Bytes()
}
