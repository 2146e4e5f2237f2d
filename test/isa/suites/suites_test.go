package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"steadfast/compute/riscv/asm"
	"steadfast/compute/riscv/bare"
)

// TestListed: what a Makefrag names, over several lines and without comments.
func TestListed(t *testing.T) {
	const makefrag = "# tests\nrv64ui_sc_tests = \\\n\tadd addi \\\n\tsub \\\n\nrv64ui_p_tests = $(addprefix rv64ui-p-, $(rv64ui_sc_tests))\n"
	if got := listed(makefrag, "rv64ui_sc_tests"); !slices.Equal(got, []string{"add", "addi", "sub"}) {
		t.Error(got)
	}
	if got := listed(makefrag, "rv64um_sc_tests"); got != nil {
		t.Error(got)
	}
}

// TestMarch: what a test is built for, and what is left out.
func TestMarch(t *testing.T) {
	for isa, want := range map[string]string{
		"RV64I":                        "rv64i_zicsr_zifencei",
		"RV32IF_Zicsr,RV64IFD_Zicsr":   "rv64ifd_zicsr_zifencei",
		"RV64IZbb,RV64IZbkb,RV64IZk":   "rv64i_zbb_zicsr_zifencei",
		"RV64IZicboz_Zicsr":            "rv64i_zicboz_zicsr_zifencei",
		"RV64IZbc":                     "",
		"RV64IK":                       "",
		"RV64ICZcmop":                  "",
		"RV64I_Zfinx,RV64I_Zdinx":      "",
		"RV64IPZicsr":                  "",
		"RV32I":                        "",
		"RV64IF_Zicsr_Zfh,RV64IC":      "rv64ic_zicsr_zifencei",
		"RV32IFD_Zicsr_Zfa,RV64ID_Zfa": "",
	} {
		got, ok := marchOf("RVTEST_ISA(\"" + isa + "\")\n")
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", isa, got, ok)
		}
	}
	if got, ok := marchOf("nothing"); ok {
		t.Error(got)
	}
}

// TestCases: which cases of a test are for this processor.
func TestCases(t *testing.T) {
	for conditions, want := range map[string]bool{
		"check ISA:=regex(.*64.*); check ISA:=regex(.*I.*Zicsr.*); def TEST_CASE_1=True": true,
		"check ISA:=regex(.*I.*C.*);def TEST_CASE_1=True;":                               true,
		"check ISA:=regex(^[^C]+$);def TEST_CASE_1=True;":                                false,
		"check ISA:=regex(.*E.*F.*);def TEST_CASE_1=True;":                               false,
		"check hw_data_misaligned_support:=True; def TEST_CASE_1=True":                   true,
		"check hw_data_misaligned_support:=False; def TEST_CASE_1=True":                  false,
	} {
		if applies(conditions) != want {
			t.Errorf("%s: %v", conditions, !want)
		}
	}
}

// program is a test that writes a value in its signature and ends with another.
func program(name string, value, end uint64, compared bool) test {
	return test{name: name, compared: compared, build: func(dir string) (string, error) {
		const toHost, signature = bare.Base + 0x1000, bare.Base + 0x1010
		c := asm.NewText(bare.Base)
		c.Emit(asm.Li(asm.T0, toHost)...)
		c.Emit(asm.Li(asm.T1, value)...)
		c.Emit(asm.Sd(asm.T1, asm.T0, signature-toHost))
		// The number of the hart's implementation is no two processors' own.
		c.Emit(asm.Csrrs(asm.T2, 0xf12, 0), asm.Sd(asm.T2, asm.T0, signature+8-toHost))
		if value == 0 {
			c.Emit(asm.Sd(0, asm.T0, signature+8-toHost))
		}
		c.Emit(asm.Li(asm.T1, end)...)
		c.Label("end")
		c.Emit(asm.Sd(asm.T1, asm.T0, 0))
		c.J("end")
		image := make([]byte, 0x2000)
		copy(image, c.Bytes())
		file := filepath.Join(dir, "program")
		return file, os.WriteFile(file, asm.ELF(bare.Base, image, map[string]uint64{
			"tohost": toHost, "begin_signature": signature, "end_signature": signature + 16,
		}), 0o600)
	}}
}

// TestJudge: a failure is noticed, an expected one is none, and one that did not come is.
func TestJudge(t *testing.T) {
	known := expected[0].name
	for _, c := range []struct {
		name string
		test test
		want counts
	}{
		{"pass", program("x", 1, 1, false), counts{pass: 1}},
		{"fail", program("x", 1, 5, false), counts{differ: 1}},
		{"expected", program(known, 1, 5, false), counts{expected: 1}},
		{"not as expected", program(known, 1, 1, false), counts{differ: 1}},
	} {
		got := &tally{seen: map[string]bool{}}
		if err := got.judge(c.test, false); err != nil {
			t.Fatal(err)
		}
		if got.counts != c.want || got.seen[known] != (c.want.expected == 1) {
			t.Errorf("%s: %+v", c.name, got.counts)
		}
	}
}

// TestSignatures: one that is QEMU's, and one that is not.
func TestSignatures(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-riscv64"); err != nil {
		t.Skip("SKIP: no qemu-system-riscv64 (apt-get install qemu-system-misc)")
	}
	for value, pass := range map[uint64]int{0: 1, 7: 0} {
		got := &tally{seen: map[string]bool{}}
		if err := got.judge(program("x", value, 1, true), false); err != nil {
			t.Fatal(err)
		}
		if got.pass != pass || got.differ != 1-pass {
			t.Errorf("value %d: %d pass, %d differ", value, got.pass, got.differ)
		}
	}
}

// TestQEMUThatFails: one that ends by itself is not waited for, and what it said is told.
func TestQEMUThatFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-riscv64"), []byte("#!/bin/sh\necho no such processor >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	file, err := program("x", 1, 1, true).build(dir)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := runOne(file, true); err == nil || !strings.Contains(err.Error(), "no such processor") {
		t.Error(err)
	}
	if took := time.Since(began); took >= qemuMost {
		t.Errorf("it was waited for %v", took)
	}
}

// TestNothing: a run of no test is no run that passes.
func TestNothing(t *testing.T) {
	if err := each([]test{{name: "a-1"}}, regexp.MustCompile("^b"), 2, func(test) error { return nil }); err == nil || !strings.Contains(err.Error(), "^b") {
		t.Error(err)
	}
}

// TestEach: every test that matches is done once, and an error of one is told.
func TestEach(t *testing.T) {
	var done atomic.Int32
	all := []test{{name: "a-1"}, {name: "a-2"}, {name: "b-1"}}
	err := each(all, regexp.MustCompile("^a"), 2, func(x test) error {
		done.Add(1)
		if x.name == "a-2" {
			return os.ErrInvalid
		}
		return nil
	})
	if done.Load() != 2 || err == nil {
		t.Errorf("%d done, %v", done.Load(), err)
	}
}
