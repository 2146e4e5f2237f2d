package softfloat

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Berkeley TestFloat's own cases, made by testfloat_gen of TestFloat 3e or later, built
// with SoftFloat's RISCV specialization (canonical NaN, saturation). Debian has no package
// of it: this runs where a testfloat_gen is in PATH.
//
// A line is the operands, the result and the flags in hexadecimal; the flags have the
// values of fflags.
func TestBerkeley(t *testing.T) {
	generator, err := exec.LookPath("testfloat_gen")
	if err != nil {
		t.Skip("testfloat_gen is not in PATH (berkeley-testfloat-3, no Debian package): ", err)
	}
	options := map[Rounding]string{RNE: "near_even", RTZ: "minMag", RDN: "min", RUP: "max", RMM: "near_maxMag"}
	total := 0
	for _, o := range operations() {
		function := berkeleyName(o.name)
		if function == "" {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			for _, rm := range o.modesOf() {
				total += berkeley(t, &o, rm, exec.Command(generator,
					"-tininessafter", "-exact", "-r"+options[rm], "-level", "1", function))
			}
		})
	}
	t.Logf("%d cases", total)
}

// berkeleyName is what TestFloat calls an operation; "" is one that it has not.
func berkeleyName(name string) string {
	if strings.HasPrefix(name, "Class") || strings.HasPrefix(name, "Min") || strings.HasPrefix(name, "Max") {
		return ""
	}
	if from, to, is := strings.Cut(name, "To"); is {
		return strings.NewReplacer("F", "f", "I", "i", "U", "ui").Replace(from + "_to_" + to)
	}
	verb, width := name[:len(name)-2], name[len(name)-2:]
	if verb == "FMA" {
		verb = "mulAdd"
	}
	return "f" + width + "_" + strings.ToLower(verb[:1]) + verb[1:]
}

// berkeley runs the generator, checks its cases and returns how many there were.
func berkeley(t *testing.T, o *operation, rm Rounding, generator *exec.Cmd) int {
	out, err := generator.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := generator.Start(); err != nil {
		t.Fatal(err)
	}
	cases, err := berkeleyCases(o, rm, out)
	switch {
	case err != nil || cases == casesMax && *scale == 1: // it may not be at its end
		_ = generator.Process.Kill()
		_ = generator.Wait()
	default:
		err = generator.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v", generator, err)
	}
	if cases < 100 {
		t.Fatalf("%s: only %d cases", generator, cases)
	}
	return cases
}

// casesMax is where an ordinary run leaves off: there are six million cases of a fused
// multiply-add in each mode.
const casesMax = 200_000

func berkeleyCases(o *operation, rm Rounding, from io.Reader) (cases int, err error) {
	lines := bufio.NewScanner(from)
	for (cases < casesMax || *scale > 1) && lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != o.arity+2 {
			return cases, fmt.Errorf("a line with %d fields: %q", len(fields), lines.Text())
		}
		var v [5]uint64
		for i, field := range fields {
			if v[i], err = strconv.ParseUint(field, 16, 64); err != nil {
				return cases, err
			}
		}
		operands := [3]uint64{}
		copy(operands[:], v[:o.arity])
		want, flags := v[o.arity], Flags(v[o.arity+1])
		if strings.HasSuffix(o.name, "32") && strings.Contains(o.name, "ToI") || strings.HasSuffix(o.name, "ToU32") {
			want = uint64(int64(int32(want))) // TestFloat knows no registers
		}
		if got, gotFlags := o.run(operands, rm); got != want || gotFlags != flags {
			return cases, fmt.Errorf("%s(%#x) %s = %#x, flags %#x; want %#x, flags %#x",
				o.name, operands[:o.arity], modes[rm], got, gotFlags, want, flags)
		}
		cases++
	}
	return cases, lines.Err()
}
