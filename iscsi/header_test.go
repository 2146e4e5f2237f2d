package iscsi

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestHeaderFields(t *testing.T) {
	var h Header
	h.SetOpcode(OpSCSICommand)
	h.SetImmediate()
	h.SetFlags(FlagFinal | FlagWrite | 1)
	h.SetDataLength(0x123456)
	h.SetAHSLength(8)
	h.SetLUN(0x0102030405060708)
	h.SetInitiatorTag(0x11121314)
	h.SetExpectedLength(0x21222324)
	h.SetCmdSN(0x31323334)
	h.SetExpStatSN(0x41424344)
	copy(h.CDB(), "sixteen byte CDB")
	want := Header{
		0x41, 0xa1, 0, 0, 2, 0x12, 0x34, 0x56, 1, 2, 3, 4, 5, 6, 7, 8,
		0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x33, 0x34, 0x41, 0x42, 0x43, 0x44,
	}
	copy(want[32:], "sixteen byte CDB")
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
	if h.DataLength() != 0x123456 || h.AHSLength() != 8 || h.Opcode() != OpSCSICommand || !h.Immediate() || !h.Final() {
		t.Error("fields do not read back")
	}

	var l Header
	l.SetOpcode(OpLoginReq)
	l.SetStages(true, false, StageOperational, StageFullFeature)
	l.SetISID(ISID{1, 2, 3, 4, 5, 6})
	l.SetTSIH(7)
	l.SetCID(9)
	l.SetLoginStatus(LoginNotFound)
	if l[1] != 0x87 || l.CSG() != StageOperational || l.NSG() != StageFullFeature || !l.Transit() || l.Continue() {
		t.Errorf("stages: %#x", l[1])
	}
	if l.ISID().String() != "010203040506" || l.TSIH() != 7 || l.CID() != 9 || l[36] != 2 || l[37] != 3 {
		t.Error("login fields")
	}
}

func TestAHSRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := AHS{HasBidi: rapid.Bool().Draw(t, "bidi")}
		if n := rapid.IntRange(0, 244).Draw(t, "cdb"); n > 0 {
			want.ExtendedCDB = bytes.Repeat([]byte{0xa5}, n)
		}
		if want.HasBidi {
			want.BidiReadLength = rapid.Uint32().Draw(t, "length")
		}
		wire := AppendAHS(nil, want)
		if len(wire)%4 != 0 {
			t.Fatalf("%d bytes", len(wire))
		}
		got, err := ParseAHS(wire)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestAHSRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"past the end":  {0, 9, 1, 0, 1, 2, 3, 4},
		"no length":     {0, 0, 1, 0},
		"unknown type":  {0, 1, 9, 0},
		"bidi length":   {0, 4, 2, 0, 0, 0, 0, 0},
		"not a segment": {0, 1},
		"twice":         {0, 5, 2, 0, 0, 0, 0, 1, 0, 5, 2, 0, 0, 0, 0, 1},
	} {
		if _, err := ParseAHS(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzPDU takes the input for a header and the segments behind it.
func FuzzPDU(f *testing.F) {
	var h Header
	h.SetOpcode(OpSCSICommand)
	h.SetAHSLength(8)
	f.Add(append(h[:], 0, 5, 2, 0, 0, 0, 0, 1))
	h.SetAHSLength(20)
	f.Add(AppendAHS(h[:], AHS{ExtendedCDB: make([]byte, 16)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h := Header(b)
		if h.DataLength() > MaxSegmentLength || h.AHSLength() > 1020 || h.Opcode().String() == "" {
			t.Fatal("a field outside its range")
		}
		copied := h
		copied.SetDataLength(h.DataLength())
		copied.SetAHSLength(h.AHSLength())
		copied.SetOpcode(h.Opcode())
		if copied != h {
			t.Fatal("fields do not write as they read")
		}
		segments := b[HeaderSize:]
		a, err := ParseAHS(segments[:min(h.AHSLength(), len(segments))])
		if err != nil {
			return
		}
		again, err := ParseAHS(AppendAHS(nil, a))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzName checks that a normal form is one.
func FuzzName(f *testing.F) {
	for _, s := range []string{"iqn.2001-04.com.example:Disk.1", "eui.02004567A425678D", "naa.52004567BA64678D", "iqn.2001-04.com.\u0130"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := NormalizeName(s)
		if err != nil {
			return
		}
		again, err := NormalizeName(n)
		if err != nil || again != n {
			t.Fatalf("%q becomes %q, and that %q, %v", s, n, again, err)
		}
	})
}

// The digests of RFC 7143, appendix A.4 (CRC examples, in wire order).
func TestDigest(t *testing.T) {
	ascending := make([]byte, 32)
	for i := range ascending {
		ascending[i] = byte(i)
	}
	for _, c := range []struct {
		name string
		in   []byte
		want uint32
	}{
		{"zeros", make([]byte, 32), 0x8a9136aa},
		{"ones", bytes.Repeat([]byte{0xff}, 32), 0x62a8ab43},
		{"ascending", ascending, 0x46dd794e},
	} {
		if got := Digest(c.in); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.name, got, c.want)
		}
	}
	if DataDigest([]byte{1, 2, 3}) != Digest([]byte{1, 2, 3, 0}) {
		t.Error("padding is part of a data digest")
	}
}

func TestSerialNumbers(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want bool
	}{{1, 2, true}, {2, 1, false}, {1, 1, false}, {0xffffffff, 0, true}, {0, 0xffffffff, false}, {0xfffffff0, 5, true}} {
		if SNLess(c.a, c.b) != c.want {
			t.Errorf("SNLess(%#x, %#x)", c.a, c.b)
		}
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"iqn.2001-04.com.example:Disk.1":                    "iqn.2001-04.com.example:disk.1",
		"IQN.2001-04.COM.EXAMPLE":                           "iqn.2001-04.com.example",
		"eui.02004567A425678D":                              "eui.02004567a425678d",
		"naa.52004567BA64678D":                              "naa.52004567ba64678d",
		"naa.62004567BA64678D0123456789ABCDEF":              "naa.62004567ba64678d0123456789abcdef",
		"iqn.2001-04.com.example:a:b":                       "iqn.2001-04.com.example:a:b",
		"iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls": "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls",
	} {
		if got, err := NormalizeName(in); err != nil || got != want {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "iqn", "iqn.", "iqn.2001-13.com", "iqn.2001-04.", "iqn.2001-04.:x", "iqn.201-04.com.x", "eui.123",
		"naa.12", "disk", "iqn.2001-04.com.example:a b", "iqn.2001-04.com.example:a,b", "iqn.2001-04.com.example:\x00", "iqn.2001-04.com/x",
		"iqn.2001-04.com.example:" + string(make([]byte, 220)), "iqn.2001-04.com.\xff",
	} {
		if got, err := NormalizeName(in); err == nil {
			t.Errorf("%q accepted as %q", in, got)
		}
	}
}
