// Package size reads and writes amounts of bytes as people do: 10G is
// 10 x 2^30, as disks of virtual machines are sized, and is printed as 10 GiB
// so that nobody takes it for 10^10.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"steadfast/fault"
)

// units are the binary prefixes, each 1024 times the one before.
const units = "KMGTPE"

// Parse reads a whole or decimal number with an optional unit: B, or one of
// K M G T P E alone or followed by B or iB, in any case. All units are binary.
// The result is bytes. Fails with fault.Invalid, also for a fraction of a byte.
func Parse(s string) (int64, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.ToUpper(strings.TrimSpace(text[len(digits):]))
	shift := 0
	switch {
	case unit == "" || unit == "B":
	case strings.IndexByte(units, unit[0]) >= 0 && (len(unit) == 1 || unit[1:] == "B" || unit[1:] == "IB"):
		shift = 10 * (1 + strings.IndexByte(units, unit[0]))
	default:
		return 0, fault.New(fault.Invalid, "size %q has no unit of K, M, G, T; write for example 10G", s)
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64>>shift {
			return 0, fault.New(fault.Invalid, "size %q is out of range", s)
		}
		return n << shift, nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || strings.Trim(digits, "0123456789.-") != "" {
		return 0, fault.New(fault.Invalid, "size %q is not a number with a unit; write for example 10G", s)
	}
	f = math.Ldexp(f, shift)
	if f < 0 || f >= math.MaxInt64 {
		return 0, fault.New(fault.Invalid, "size %q is out of range", s)
	}
	if f != math.Trunc(f) {
		return 0, fault.New(fault.Invalid, "size %q is not a whole number of bytes", s)
	}
	return int64(f), nil
}

// Format writes n bytes with at most two decimals: "1.5 GiB", "512 B".
func Format(n int64) string {
	sign := ""
	v := uint64(n)
	if n < 0 {
		sign, v = "-", -v
	}
	if v < 1024 {
		return fmt.Sprintf("%s%d B", sign, v)
	}
	f, u := float64(v)/1024, 0
	// 1023.995 would round to "1024.00": the next unit says it better.
	for f >= 1023.995 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	text := strings.TrimRight(strings.TrimRight(strconv.FormatFloat(f, 'f', 2, 64), "0"), ".")
	return sign + text + " " + units[u:u+1] + "iB"
}
