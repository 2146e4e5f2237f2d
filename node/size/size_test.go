package size_test

import (
	"math"
	"testing"

	"steadfast/fault"
	"steadfast/node/size"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
	}{
		{"0", 0},
		{"512", 512},
		{"512B", 512},
		{"4k", 4096},
		{"4 KiB", 4096},
		{"10G", 10 << 30},
		{"1.5G", 3 << 29},
		{"1TB", 1 << 40},
		{"64T", 64 << 40},
		{"0.5K", 512},
		{"7E", 7 << 60},
		{"9223372036854775807", math.MaxInt64},
	} {
		got, err := size.Parse(c.text)
		if err != nil || got != c.want {
			t.Errorf("Parse(%q) = %d, %v; want %d", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"", "G", "-1", "-1G", "10X", "10GG", "1e3", "8E", "0.3", "ten", "1 0G", "NaN", "0x10", "Inf", "9223372036854775808", "10Gi"} {
		if got, err := size.Parse(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("Parse(%q) = %d, %v; want fault.Invalid", text, got, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		n    int64
		want string
	}{
		{0, "0 B"},
		{1023, "1023 B"},
		{1024, "1 KiB"},
		{1536, "1.5 KiB"},
		{1 << 20, "1 MiB"},
		{1<<20 - 1, "1 MiB"},
		{10 << 30, "10 GiB"},
		{64 << 40, "64 TiB"},
		{1234567890, "1.15 GiB"},
		{-4096, "-4 KiB"},
		{math.MaxInt64, "8 EiB"},
		{math.MinInt64, "-8 EiB"},
	} {
		if got := size.Format(c.n); got != c.want {
			t.Errorf("Format(%d) = %q; want %q", c.n, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("10G")
	f.Add("1.5 TiB")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := size.Parse(s); err == nil && n < 0 {
			t.Errorf("Parse(%q) = %d", s, n)
		}
	})
}
