package main

import (
	"os/exec"
	"testing"
)

// needQEMU skips a test that has nothing to compare with.
func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(qemuCommand); err != nil {
		t.Skipf("SKIP: no %s (apt-get install qemu-system-misc)", qemuCommand)
	}
}

func TestAgree(t *testing.T) {
	needQEMU(t)
	differ, err := check(40_000, 1_000_000, 600, 4, "", false, 1)
	if err != nil || differ != 0 {
		t.Fatalf("%d programs differ, %v", differ, err)
	}
}

// TestFlaws: one mistake in each extension, and in what is no instruction, is noticed.
func TestFlaws(t *testing.T) {
	needQEMU(t)
	for _, flaw := range []string{
		"add=sub", "bltu=blt", "lwu=lw", "sraiw=srliw", // I
		"c.addi=xori",               // C
		"mulhsu=mulh", "remw=remuw", // M
		"amomax.w=amomaxu.w", "sc.d=sc.w", // A
		"fmin.s=fmax.s", "fcvt.wu.s=fcvt.w.s", "boxing", // F
		"fnmsub.d=fnmadd.d", "fcvt.s.d=fcvt.d.s", // D
		"csrrc=csrrs",            // Zicsr
		"sh2add.uw=sh2add",       // Zba
		"orc.b=rev8", "rolw=rol", // Zbb
		"bexti=bseti",   // Zbs
		"code",          // code that changes itself
		"cause", "tval", // traps
		"dirty", "translations", // Sv39
	} {
		t.Run(flaw, func(t *testing.T) {
			differ, err := check(150_000, 1, 600, 4, flaw, false, 1)
			if err != nil {
				t.Fatal(err)
			}
			if differ == 0 {
				t.Error("nothing was noticed")
			}
		})
	}
}
