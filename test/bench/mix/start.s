# A "kernel" for machines of the bench: the mix, in S mode under Sv39. The header is Linux's,
# Documentation/arch/riscv/boot-image-header.rst.
	.section .text.start, "ax"
	.globl _start
_start:
	.option push
	.option norvc
	j begin
	nop
	.option pop
	.quad 0x200000
	.quad _end - _start
	.quad 0
	.word 2
	.word 0
	.quad 0
	.quad 0x5643534952
	.word 0x05435352
	.word 0
begin:
	la sp, stack_end
	call prepare
	csrw satp, a0
	sfence.vma
	call mix
	# SBI, system reset: shut down.
	li a7, 0x53525354
	li a6, 0
	li a0, 0
	li a1, 0
	ecall
1:	j 1b

	.bss
	.balign 4096
	.space 65536
stack_end:
