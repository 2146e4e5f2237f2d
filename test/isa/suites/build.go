package main

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const compiler = "riscv64-linux-gnu-gcc"

// options are what both suites are built with: programs at fixed addresses, of nothing
// but themselves.
var options = []string{
	"-mcmodel=medany", "-static", "-fno-pie", "-no-pie", "-fvisibility=hidden", "-nostdlib", "-nostartfiles",
	"-fno-stack-protector", "-Wl,--build-id=none,--no-warn-rwx-segments", "-w",
}

// compile builds a program.
func compile(out string, args ...string) (string, error) {
	args = append(append(slices.Clone(options), args...), "-o", out)
	if text, err := exec.Command(compiler, args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", compiler, err, bytes.TrimSpace(text))
	}
	return out, nil
}

// groups are the groups of riscv-tests whose extensions there are, and what they are built for.
var groups = []struct{ name, march string }{
	{"rv64ui", "rv64g"},
	{"rv64uc", "rv64g"},
	{"rv64um", "rv64g"},
	{"rv64ua", "rv64g"},
	{"rv64uf", "rv64g"},
	{"rv64ud", "rv64g"},
	{"rv64uziccid", "rv64g"},
	{"rv64uzba", "rv64g_zba"},
	{"rv64uzbb", "rv64g_zbb"},
	{"rv64uzbs", "rv64g_zbs"},
	{"rv64mzicbo", "rv64g_zicboz"},
	{"rv64si", "rv64g"},
	{"rv64mi", "rv64g"},
}

// riscvTestsIn lists the tests of riscv-tests: those that a group's Makefrag names, in
// the environment p (machine mode, physical memory) and, where it says so, v (user mode in
// virtual memory, with a small kernel that pages). The Makefrags are read, and not folders:
// they are what the suite itself builds.
func riscvTestsIn(root string, _ int64) (all []test, err error) {
	if _, err := os.Stat(filepath.Join(root, "env", "p", "riscv_test.h")); err != nil {
		return nil, fmt.Errorf("riscv-tests without its submodule (git submodule update --init): %w", err)
	}
	for _, g := range groups {
		makefrag, err := os.ReadFile(filepath.Join(root, "isa", g.name, "Makefrag"))
		if err != nil {
			return nil, err
		}
		for _, name := range listed(string(makefrag), g.name+"_sc_tests") {
			for _, env := range []string{"p", "v"} {
				if strings.Contains(string(makefrag), g.name+"_"+env+"_tests") {
					all = append(all, riscvTest(root, g.name, g.march, env, name))
				}
			}
		}
	}
	return all, nil
}

// listed are the words that a makefile sets a variable to.
func listed(makefile, variable string) []string {
	text := regexp.MustCompile(`#.*`).ReplaceAllString(makefile, "")
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		if name, words, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == variable {
			return strings.Fields(words)
		}
	}
	return nil
}

// riscvTest is a test of riscv-tests in an environment.
func riscvTest(root, group, march, env, name string) test {
	full := group + "-" + env + "-" + name
	return test{name: full, build: func(dir string) (string, error) {
		in := filepath.Join(root, "env", env)
		args := []string{
			"-march=" + march, "-mabi=lp64d", "-I" + in, "-I" + filepath.Join(root, "isa", "macros", "scalar"),
			"-T" + filepath.Join(in, "link.ld"),
		}
		if env == "v" {
			// ENTROPY chooses where its pages are; any number will do.
			args = append(args, fmt.Sprintf("-DENTROPY=0x%07x", crc32.ChecksumIEEE([]byte(full))>>4), "-std=gnu99", "-O2", filepath.Join(in, "entry.S"))
			sources, err := filepath.Glob(filepath.Join(in, "*.c"))
			if err != nil {
				return "", err
			}
			args = append(args, sources...)
		}
		return compile(filepath.Join(dir, full), append(args, filepath.Join(root, "isa", group, name+".S"))...)
	}}
}

// archDirs are the folders of riscv-arch-test whose tests are for extensions that there are.
var archDirs = []string{
	"rv64i_m/I", "rv64i_m/M", "rv64i_m/A", "rv64i_m/C", "rv64i_m/B", "rv64i_m/F", "rv64i_m/D", "rv32i_m/F", "rv32i_m/D",
	"rv64i_m/CMO", "rv64i_m/Zifencei", "rv64i_m/Svadu", "rv64i_m/privilege",
}

// archTestsIn lists the tests of riscv-arch-test whose sources have at most so many
// bytes, for the instruction sets that there are.
func archTestsIn(root string, most int64) (all []test, err error) {
	suite := filepath.Join(root, "riscv-test-suite")
	for _, dir := range archDirs {
		files, err := archFiles(filepath.Join(suite, dir, "src"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if most != 0 && int64(len(source)) > most {
				continue
			}
			march, ok := marchOf(string(source))
			if !ok {
				continue
			}
			name := dir + "/" + strings.TrimSuffix(filepath.Base(file), ".S")
			all = append(all, test{name: name, compared: true, build: func(dir string) (string, error) {
				return buildArch(suite, dir, file, march, string(source))
			}})
		}
	}
	return all, nil
}

// archFiles are the sources of tests in a folder and those below it.
func archFiles(dir string) (files []string, err error) {
	for _, pattern := range []string{"*.S", "*/*.S"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no tests of riscv-arch-test in %s", dir)
	}
	return files, nil
}

// isaOf and caseOf find in a test's source what it is for, and what it wants defined.
var (
	isaOf  = regexp.MustCompile(`RVTEST_ISA\("([^"]*)"\)`)
	caseOf = regexp.MustCompile(`RVTEST_CASE\([^"]*"//([^"]*)"`)
	defOf  = regexp.MustCompile(`def\s+(\w+=\w+)`)
)

// marchOf is what to compile a test for; false if it is for what there is not. A test names
// several sets of extensions, any of which will do: the first that this processor has is taken.
// Zicsr and Zifencei are added, since all tests' frame uses both, and compilers from GCC 12 on
// no longer count them as parts of I.
func marchOf(source string) (string, bool) {
	m := isaOf.FindStringSubmatch(source)
	if m == nil {
		return "", false
	}
	for isa := range strings.SplitSeq(m[1], ",") {
		rest, ok := strings.CutPrefix(strings.TrimSpace(isa), "RV64I")
		if !ok {
			continue
		}
		letters, march := "", ""
		for rest != "" && rest[0] != 'Z' && rest[0] != '_' {
			letters, rest = letters+rest[:1], rest[1:]
		}
		known := strings.Trim(letters, "MAFDC") == ""
		for _, z := range strings.FieldsFunc(strings.ReplaceAll(rest, "Z", "_Z"), func(r rune) bool { return r == '_' }) {
			switch z {
			case "Zicsr", "Zifencei", "Zba", "Zbb", "Zbs", "Zicboz":
				march += "_" + strings.ToLower(z)
			default:
				known = false
			}
		}
		if known {
			for _, z := range []string{"_zicsr", "_zifencei"} {
				if !strings.Contains(march, z) {
					march += z
				}
			}
			return "rv64i" + strings.ToLower(letters) + march, true
		}
	}
	return "", false
}

// modelHeader is what a test of riscv-arch-test asks of the model that it runs on: macros,
// most of which are empty, for there is nothing to set up and no interrupt to raise. tohost is
// put into a section of its own, so that it is not on a page of code or of the signature.
const modelHeader = `
#define RVMODEL_HALT li x1, 1; 1: sw x1, tohost, t2; j 1b;
#define RVMODEL_BOOT
#define RVMODEL_DATA_BEGIN .align 4; .global begin_signature; begin_signature:
#define RVMODEL_DATA_END .align 4; .global end_signature; end_signature: \
	.pushsection .tohost,"aw",@progbits; \
	.align 8; .global tohost; tohost: .dword 0; \
	.align 8; .global fromhost; fromhost: .dword 0; \
	.popsection;
#define RVMODEL_IO_INIT
#define RVMODEL_IO_WRITE_STR(_R, _STR)
#define RVMODEL_IO_CHECK()
#define RVMODEL_IO_ASSERT_GPR_EQ(_S, _R, _I)
#define RVMODEL_IO_ASSERT_SFPR_EQ(_F, _R, _I)
#define RVMODEL_IO_ASSERT_DFPR_EQ(_D, _R, _I)
#define RVMODEL_SET_MSW_INT
#define RVMODEL_CLEAR_MSW_INT
#define RVMODEL_CLEAR_MTIMER_INT
#define RVMODEL_CLEAR_MEXT_INT
`

// modelScript is where its parts lie in memory.
const modelScript = `
OUTPUT_ARCH("riscv")
ENTRY(rvtest_entry_point)
SECTIONS
{
  . = 0x80000000;
  .text.init : { *(.text.init) }
  . = ALIGN(0x1000);
  .tohost : { *(.tohost) }
  . = ALIGN(0x1000);
  .text : { *(.text) }
  . = ALIGN(0x1000);
  .data : { *(.data) *(.data.string) }
  .bss : { *(.bss) }
}
`

// buildArch builds a test of riscv-arch-test.
func buildArch(suite, dir, file, march, source string) (string, error) {
	script := filepath.Join(dir, "link.ld")
	for name, text := range map[string]string{filepath.Join(dir, "model_test.h"): modelHeader, script: modelScript} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	abi := "-mabi=lp64"
	args := []string{"-march=" + march, "-T" + script, "-I" + dir, "-I" + filepath.Join(suite, "env"), "-DXLEN=64"}
	letters, _, _ := strings.Cut(strings.TrimPrefix(march, "rv64i"), "_")
	switch {
	case strings.Contains(letters, "d"):
		args = append(args, "-DFLEN=64")
	case strings.Contains(letters, "f"):
		args = append(args, "-DFLEN=32")
	}
	for _, c := range caseOf.FindAllStringSubmatch(source, -1) {
		if !applies(c[1]) {
			continue
		}
		for _, d := range defOf.FindAllStringSubmatch(c[1], -1) {
			args = append(args, "-D"+d[1])
		}
	}
	return compile(filepath.Join(dir, "test.elf"), append(args, abi, file)...)
}

// checks find the conditions of a case.
var (
	regexOf      = regexp.MustCompile(`check ISA:=regex\(([^;]*)\)`)
	misalignedOf = regexp.MustCompile(`check hw_data_misaligned_support:=(\w+)`)
)

// theISA is what the conditions of cases are held against. They are regular expressions for a
// name of this form, so the order of its letters matters.
const theISA = "RV64IMAFDCZicsr_Zicboz_Zifencei_Zba_Zbb_Zbs_Svadu"

// applies tells whether a case is for this processor.
func applies(conditions string) bool {
	for _, m := range regexOf.FindAllStringSubmatch(conditions, -1) {
		if ok, err := regexp.MatchString(m[1], theISA); err != nil || !ok {
			return false
		}
	}
	if m := misalignedOf.FindStringSubmatch(conditions); m != nil && m[1] != "True" {
		return false
	}
	return true
}
