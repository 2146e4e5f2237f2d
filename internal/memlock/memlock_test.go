package memlock

import (
	"errors"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inner is set for the process that TestLock begins.
const inner = "STEADFAST_MEMLOCK_TEST"

// TestLock: a program that is locked is there to the last page.
func TestLock(t *testing.T) {
	if os.Getenv(inner) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), self, "-test.run", "^TestLock$", "-test.v")
		c.Env = append(os.Environ(), inner+"=1")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("not as this user: %s", out)
		}
		return
	}
	if err := Lock(); errors.Is(err, unix.EPERM) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	program, resident := 0, 0
	for _, m := range regexp.MustCompile(`(?m)^[0-9a-f]+-[0-9a-f]+ r[w-][x-]p .* /.*\n(?:[A-Z].*\n)*`).FindAllString(string(maps), -1) {
		kib := func(what string) int {
			n, err := strconv.Atoi(strings.Fields(m[strings.Index(m, what):])[1])
			if err != nil {
				t.Fatalf("%s: %v", m, err)
			}
			return n
		}
		program, resident = program+kib("Size:"), resident+kib("Rss:")
		if flags := m[strings.Index(m, "VmFlags:"):]; !strings.Contains(flags, " lo") {
			t.Errorf("it is not locked: %s", m)
		}
	}
	if program == 0 || resident != program {
		t.Errorf("%d KiB of the program's %d are there", resident, program)
	}
}

func TestProgramOf(t *testing.T) {
	list, err := programOf(strings.NewReader(`00400000-010be000 r-xp 00000000 fd:00 123                               /usr/bin/steadfast
010be000-020be000 r--p 00cbe000 fd:00 123                               /usr/bin/a name
020be000-0213d000 rw-p 01cbe000 fd:00 123                               /usr/bin/steadfast
c000000000-c000400000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                         [vdso]
`))
	if want := []mapping{{0x400000, 0x10be000}, {0x10be000, 0x20be000}, {0x20be000, 0x213d000}}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("%x, %v", list, err)
	}
	if _, err := programOf(strings.NewReader("0-g r-xp 0 0:0 1 /a\n")); err == nil {
		t.Error("an address that is none")
	}
}
