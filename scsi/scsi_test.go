package scsi

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unhex reads bytes written as hex with spaces.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeTransfer(t *testing.T) {
	for _, c := range []struct {
		name, cdb string
		want      Transfer
	}{
		{"READ(6)", "08 1f ff ff 08 00", Transfer{LBA: 0x1fffff, Blocks: 8}},
		{"READ(6) of 256", "08 e0 00 01 00 00", Transfer{LBA: 1, Blocks: 256}},
		{"READ(10)", "28 18 01 02 03 04 00 01 00 00", Transfer{LBA: 0x01020304, Blocks: 256, DPO: true, FUA: true}},
		{"WRITE(10) with WRPROTECT", "2a 20 00 00 00 00 00 00 01 00", Transfer{Blocks: 1, Protect: 1}},
		{"READ(12)", "a8 08 00 00 00 09 00 01 00 02 00 00", Transfer{LBA: 9, Blocks: 0x10002, FUA: true}},
		{"WRITE(16)", "8a 10 01 00 00 00 00 00 00 02 00 00 00 03 00 00", Transfer{LBA: 1<<56 | 2, Blocks: 3, DPO: true}},
		{"VERIFY(10) BYTCHK 11b", "2f 06 00 00 00 05 00 00 02 00", Transfer{LBA: 5, Blocks: 2, ByteCheck: 3}},
		{"WRITE AND VERIFY(16)", "8e 02 00 00 00 00 00 00 00 07 00 00 00 01 00 00", Transfer{LBA: 7, Blocks: 1, ByteCheck: 1}},
		{"WRITE SAME(10)", "41 18 00 00 00 05 00 00 02 00", Transfer{LBA: 5, Blocks: 2, Anchor: true, Unmap: true}},
		{"WRITE SAME(10) has no NDOB", "41 09 00 00 00 05 00 00 02 00", Transfer{LBA: 5, Blocks: 2, Unmap: true}},
		{"WRITE SAME(16)", "93 09 00 00 00 00 00 00 00 05 00 00 00 02 00 00", Transfer{LBA: 5, Blocks: 2, Unmap: true, NoData: true}},
		{"COMPARE AND WRITE", "89 08 00 00 00 00 00 00 00 05 ff ff ff 02 00 00", Transfer{LBA: 5, Blocks: 2, FUA: true}},
		{"PRE-FETCH(10)", "34 02 00 00 00 05 00 00 02 00", Transfer{LBA: 5, Blocks: 2, Immediate: true}},
		{"SYNCHRONIZE CACHE(16)", "91 02 00 00 00 00 00 00 00 05 00 00 00 00 00 00", Transfer{LBA: 5, Immediate: true}},
	} {
		got, ok := DecodeTransfer(unhex(t, c.cdb))
		if diff := cmp.Diff(c.want, got); !ok || diff != "" {
			t.Errorf("%s: ok %v\n%s", c.name, ok, diff)
		}
	}
	for _, short := range []string{"", "28", "28 00 00 00 00 00 00 00 00", "88 00 00 00 00 00 00 00 00 00 00 00", "c0 00 00 00 00 00 00 00 00 00"} {
		if got, ok := DecodeTransfer(unhex(t, short)); ok {
			t.Errorf("%q decoded to %+v", short, got)
		}
	}
}

func TestLUN(t *testing.T) {
	for n := 0; n <= LUNMax; n++ {
		if got, ok := MakeLUN(n).Number(); !ok || got != n {
			t.Fatalf("LUN %d comes back as %d, %v", n, got, ok)
		}
	}
	for l, want := range map[LUN]int{0: 0, 0x0005 << 48: 5, 0x4005 << 48: 5, 0x41ff << 48: 511} {
		if got, ok := l.Number(); !ok || got != want {
			t.Errorf("%016x is %d, %v, want %d", uint64(l), got, ok, want)
		}
	}
	// Bus identifiers, well-known units and second levels are not ours.
	for _, l := range []LUN{1, 0x0105 << 48, 0xc101 << 48, 0x8000 << 48, 0x0005_0001 << 32} {
		if n, ok := l.Number(); ok {
			t.Errorf("%016x is taken for LUN %d", uint64(l), n)
		}
	}
}

func TestSense(t *testing.T) {
	for _, c := range []struct {
		name           string
		check          *Check
		fixed, withDes string
	}{
		{"plain", Fail(5, 0x20, 0), "70 00 05 00000000 0a 00000000 20 00 00 000000", "72 05 20 00 000000 00"},
		{
			"LBA", OutOfRange(0x12345678), "f0 00 05 12345678 0a 00000000 21 00 00 000000",
			"72 05 21 00 000000 0c 00 0a 80 00 0000000012345678",
		},
		{
			"LBA too great for fixed format", OutOfRange(1 << 40), "70 00 05 00000000 0a 00000000 21 00 00 000000",
			"72 05 21 00 000000 0c 00 0a 80 00 0000010000000000",
		},
		{
			"field of the CDB", InvalidCDB(1, 7), "70 00 05 00000000 0a 00000000 24 00 00 cf0001",
			"72 05 24 00 000000 08 02 06 00 00 cf0001 00",
		},
		{
			"field of the list", InvalidData(300, -1), "70 00 05 00000000 0a 00000000 26 00 00 80012c",
			"72 05 26 00 000000 08 02 06 00 00 80012c 00",
		},
	} {
		for _, descriptors := range []bool{false, true} {
			want := unhex(t, c.fixed)
			if descriptors {
				want = unhex(t, c.withDes)
			}
			got := c.check.AppendSense(nil, descriptors)
			if !bytes.Equal(got, want) {
				t.Errorf("%s, descriptors %v: % x, want % x", c.name, descriptors, got, want)
			}
			if len(got) > SenseMax {
				t.Errorf("%s: %d bytes", c.name, len(got))
			}
			back, ok := DecodeSense(got)
			if !ok || back.Sense != c.check.Sense {
				t.Errorf("%s: reads back as %+v, %v", c.name, back, ok)
			}
			if back.HasField != c.check.HasField || back.Byte != c.check.Byte || back.Bit != c.check.Bit || back.InData != c.check.InData {
				t.Errorf("%s: field reads back as %+v", c.name, back)
			}
			if back.HasInformation && back.Information != c.check.Information {
				t.Errorf("%s: information reads back as %x", c.name, back.Information)
			}
		}
	}
}

func TestModePages(t *testing.T) {
	m := Mode{WriteCache: true, DescriptorSense: true}
	all, ok := m.AppendPages(nil, PageAll, SubpageAll, ModeCurrent)
	want := unhex(t, "08 12 04 0000000000000000000000000000000000"+"0a 0a 06 10 00 00 0000 ffff 0000"+"1c 0a 08 000000000000000000")
	if diff := cmp.Diff(want, all); !ok || diff != "" {
		t.Errorf("all pages: %v\n%s", ok, diff)
	}
	changeable, _ := m.AppendPages(nil, PageControl, 0, ModeChangeable)
	if diff := cmp.Diff(unhex(t, "0a 0a 04 00 08 40 0000 0000 0000"), changeable); diff != "" {
		t.Errorf("changeable control page:\n%s", diff)
	}
	if _, ok := m.AppendPages(nil, 0x01, 0, ModeCurrent); ok {
		t.Error("page 01h exists")
	}
	if _, ok := m.AppendPages(nil, PageControl, 1, ModeCurrent); ok {
		t.Error("subpage 0Ah/01h exists")
	}
}

func TestModeSelect(t *testing.T) {
	const header6, header10 = "00 00 00 00", "0000 00 00 00 00 0000"
	control := func(swp, tas string) string { return "0a 0a 02 10 " + swp + tas + " 0000 ffff 0000" }
	for _, c := range []struct {
		name, list string
		ten        bool
		want       Mode
		fails      string
	}{
		{"empty", "", false, Mode{}, ""},
		{"SWP", header6 + control("08", "00"), false, Mode{SoftwareProtect: true}, ""},
		{"TAS, ten", header10 + control("00", "40"), true, Mode{TaskAborted: true}, ""},
		{"WCE", header6 + "08 12 04 00000000000000000000000000000000 00", false, Mode{WriteCache: true}, ""},
		{"same block descriptor", "00 00 00 08 00000064 00 000200" + control("08", "00"), false, Mode{SoftwareProtect: true}, ""},
		{"other block size", "00 00 00 08 00000064 00 001000", false, Mode{}, "5h/26h/00h"},
		{"other capacity", "00 00 00 08 00000063 00 000200", false, Mode{}, "5h/26h/00h"},
		{"what cannot change", header6 + "0a 0a 22 10 00 00 0000 ffff 0000", false, Mode{}, "5h/26h/00h"},
		{"unknown page", header6 + "01 0a 00 00 00 00 0000 0000 0000", false, Mode{}, "5h/26h/00h"},
		{"cut page", header6 + "0a 0a 02", false, Mode{}, "5h/1ah/00h"},
		{"cut header", "00 00", false, Mode{}, "5h/1ah/00h"},
		{"wrong page length", header6 + "0a 08 02 10 00 00 0000 ffff", false, Mode{}, "5h/26h/00h"},
	} {
		got, check := DecodeModeSelect(unhex(t, c.list), c.ten, Mode{}, 100, 512)
		fails := ""
		if check != nil {
			fails = strings.TrimPrefix(check.Error(), "sense ")
			got = Mode{}
		}
		if fails != c.fails || got != c.want {
			t.Errorf("%s: %+v %s, want %+v %s", c.name, got, fails, c.want, c.fails)
		}
	}
}

func TestTransportID(t *testing.T) {
	const port = "iqn.2026-11.io.example:a,i,0x00023d000001"
	b := AppendTransportID(nil, port)
	if len(b)%4 != 0 || len(b) < 24 {
		t.Errorf("%d bytes", len(b))
	}
	id, n, ok := decodeTransportID(append(b, 1, 2, 3))
	if !ok || n != len(b) || id.Name != port || id.Device {
		t.Errorf("reads back as %+v, %d, %v", id, n, ok)
	}
	device := append([]byte{0x05, 0, 0, 20}, "iqn.2026-11.io.ex:b\x00"...)
	if id, _, ok := decodeTransportID(device); !ok || !id.Device || id.Name != "iqn.2026-11.io.ex:b" {
		t.Errorf("device name reads as %+v, %v", id, ok)
	}
	for name, bad := range map[string][]byte{
		"not iSCSI":      append([]byte{0x46}, b[1:]...),
		"cut":            b[:len(b)-4],
		"port as device": append([]byte{0x05}, b[1:]...),
		"not ended":      append([]byte{0x05, 0, 0, 20}, "iqn.2026-11.io.exa:bb"...)[:24],
	} {
		if id, _, ok := decodeTransportID(bad); ok {
			t.Errorf("%s: reads as %+v", name, id)
		}
	}
}

func TestPersistOut(t *testing.T) {
	cdb := func(action string, length string) []byte { return unhex(t, "5f"+action+"01 00 00 000000"+length+" 00") }
	id := AppendTransportID(nil, "iqn.2026-11.io.example:a,i,0x00023d000001")
	plain := unhex(t, "0000000000000001 0000000000000002 00000000 05 00 0000")
	p, check := DecodePersistOut(cdb("00", "18"), plain)
	if diff := cmp.Diff(PersistOut{Type: 1, Key: 1, ActionKey: 2, AllPorts: true, Persist: true}, p); check != nil || diff != "" {
		t.Errorf("REGISTER: %v\n%s", check, diff)
	}
	if _, check := DecodePersistOut(cdb("00", "17"), plain); check == nil || check.ASC != 0x1a {
		t.Errorf("short list: %v", check)
	}
	if _, check := DecodePersistOut(cdb("00", "18"), plain[:20]); check == nil || check.ASC != 0x1a {
		t.Errorf("cut list: %v", check)
	}
	spec := append(bytes.Clone(plain), 0, 0, 0, byte(len(id)))
	spec[20] = 0x08
	spec = append(spec, id...)
	p, check = DecodePersistOut(cdb("00", hex.EncodeToString([]byte{byte(len(spec))})), spec)
	if check != nil || !p.Specified || len(p.Initiators) != 1 || !strings.HasSuffix(p.Initiators[0].Name, ",i,0x00023d000001") {
		t.Errorf("SPEC_I_PT: %+v, %v", p, check)
	}
	if _, check = DecodePersistOut(cdb("06", hex.EncodeToString([]byte{byte(len(spec))})), spec); check == nil {
		t.Error("SPEC_I_PT with REGISTER AND IGNORE EXISTING KEY is accepted")
	}
	move := unhex(t, "0000000000000001 0000000000000002 00 03 0002 000000"+hex.EncodeToString([]byte{byte(len(id))}))
	move = append(move, id...)
	p, check = DecodePersistOut(cdb("07", hex.EncodeToString([]byte{byte(len(move))})), move)
	if check != nil || p.Port != 2 || !p.Unregister || !p.Persist || len(p.Initiators) != 1 {
		t.Errorf("REGISTER AND MOVE: %+v, %v", p, check)
	}
}

func TestDecodeUnmap(t *testing.T) {
	list := unhex(t, "0026 0020 00000000"+"0000000000000001 00000002 00000000"+"0000000000000003 00000004 00000000")
	e, check := DecodeUnmap(list)
	if check != nil || e.Len() != 2 || e.At(1) != (Extent{3, 4}) {
		t.Errorf("%d extents, %v", e.Len(), check)
	}
	if e, check := DecodeUnmap(list[:39]); check != nil || e.Len() != 1 {
		t.Errorf("cut: %d extents, %v", e.Len(), check)
	}
	if _, check := DecodeUnmap(list[:7]); check == nil {
		t.Error("a list of 7 bytes is accepted")
	}
	if e, check := DecodeUnmap(nil); check != nil || e.Len() != 0 {
		t.Errorf("empty: %d extents, %v", e.Len(), check)
	}
}

// copyList makes an EXTENDED COPY parameter list.
func copyList(targets, segments int) []byte {
	b := make([]byte, 16, 16+targets*32+segments*28)
	b[0] = 7
	b[2], b[3] = byte(targets*32>>8), byte(targets*32)
	b[10], b[11] = byte(segments*28>>8), byte(segments*28)
	for range targets {
		d := make([]byte, 32)
		d[0], d[4], d[5], d[7], d[30] = 0xe4, 1, 3, 16, 2
		b = append(b, d...)
	}
	for range segments {
		d := make([]byte, 28)
		d[0], d[3], d[11], d[19], d[27] = 0x02, 0x18, 9, 1, 2
		b = append(b, d...)
	}
	return b
}

func TestDecodeCopy(t *testing.T) {
	c, check := DecodeCopy(copyList(2, 3))
	if check != nil || len(c.Targets) != 2 || len(c.Segments) != 3 || c.ListID != 7 {
		t.Fatalf("%+v, %v", c, check)
	}
	if got := c.Targets[0]; got.Kind != DesignatorNAA || len(got.Designator) != 16 || got.BlockSize != 512 {
		t.Errorf("target %+v", got)
	}
	if diff := cmp.Diff(CopySegment{Blocks: 9, SourceLBA: 1, DestinationLBA: 2}, c.Segments[0]); diff != "" {
		t.Error(diff)
	}
	wrongTarget, wrongSegment := copyList(1, 1), copyList(1, 1)
	wrongTarget[16], wrongSegment[48] = 0xe0, 0x03
	for name, w := range map[string]struct {
		list []byte
		want string
	}{
		"cut target":         {copyList(1, 1)[:47], "sense 5h/1ah/00h"},
		"cut segment":        {copyList(1, 1)[:75], "sense 5h/1ah/00h"},
		"too many targets":   {copyList(CopyTargetsMax+1, 1), "sense 5h/26h/06h"},
		"too many segments":  {copyList(1, CopySegmentsMax+1), "sense 5h/26h/08h"},
		"too long":           {copyList(CopyTargetsMax+1, CopySegmentsMax+1), "sense 5h/1ah/00h"},
		"target of a kind":   {wrongTarget, "sense 5h/26h/07h"},
		"segment of a kind":  {wrongSegment, "sense 5h/26h/09h"},
		"shorter than legal": {[]byte{1, 2, 3}, "sense 5h/1ah/00h"},
	} {
		if _, check := DecodeCopy(w.list); check == nil || check.Error() != w.want {
			t.Errorf("%s: %v, want %s", name, check, w.want)
		}
	}
	if c, check := DecodeCopy(nil); check != nil || len(c.Segments) != 0 {
		t.Errorf("empty list: %+v, %v", c, check)
	}
}

func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"READ CAPACITY(10)", AppendCapacity10(nil, 1<<33, 512), "ffffffff 00000200"},
		{"READ CAPACITY(16)", AppendCapacity16(nil, 7, 512, 3), "0000000000000007 00000200 00 03 c000" + strings.Repeat("00", 16)},
		{"REPORT LUNS", AppendLUNs(nil, []LUN{MakeLUN(1), MakeLUN(300)}), "00000010 00000000 0001000000000000 412c000000000000"},
		{"GET LBA STATUS", AppendLBAStatus(nil, []LBAStatus{{8, 16, LBADeallocated}}), "00000014 00000000 0000000000000008 00000010 01 000000"},
		{"READ KEYS", AppendKeys(nil, 3, []uint64{5}), "00000003 00000008 0000000000000005"},
		{"READ RESERVATION, none", AppendReservation(nil, 3, 0, 0), "00000003 00000000"},
		{"READ RESERVATION", AppendReservation(nil, 3, 6, 9), "00000003 00000010 0000000000000009 00000000 00 06 0000"},
		{"REPORT CAPABILITIES", AppendCapabilities(nil, true), "0008 1d 81 ea01 0000"},
		{
			"RTPG", AppendPortGroups(nil, []PortGroup{{1, ActiveOptimized, true, []uint16{1, 2}}}, false),
			"00000010 80 8f 0001 00 02 00 02 0000 0001 0000 0002",
		},
		{"COPY STATUS", AppendCopyStatus(nil, CopyResult{Segments: 2, Bytes: 1 << 33}), "00000008 01 0002 01 00800000"},
		{"NAA designator", AppendDesignator(nil, CodeBinary, OfUnit, DesignatorNAA, []byte{0x6a, 1}), "01 03 00 02 6a01"},
		{"name designator", AppendNameDesignator(nil, OfTarget, "iqn"), "53 a8 00 04 69716e00"},
		{"name designator, padded", AppendNameDesignator(nil, OfTarget, "iqn."), "53 a8 00 08 69716e2e00000000"},
		{"one command, unknown", AppendSupportedOne(nil, nil, true), "00 01 0000"},
		{
			"one command", AppendSupportedOne(nil, &Supported{Usage: []byte{0, 0xff}, Timeout: 60}, true),
			"00 83 0002 00ff 000a 0000 00000000 0000003c",
		},
		{
			"all commands", AppendSupportedAll(nil, []Supported{{Opcode: 0x9e, Action: 0x10, HasAction: true, Usage: make([]byte, 16)}}, false),
			"00000008 9e 00 0010 00 01 0010",
		},
	} {
		if want := unhex(t, c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got % x\nwant % x", c.name, c.got, want)
		}
	}
	q := Inquiry{Vendor: "STEADFST", Product: "VOLUME", Revision: "1"}.Append(nil)
	if len(q) != 96 || q[4] != 91 || string(q[8:36]) != "STEADFSTVOLUME          1   " || q[2] != 6 || q[5] != 0x18 {
		t.Errorf("INQUIRY % x", q)
	}
	full := AppendFullStatus(nil, 1, []FullStatus{{Key: 2, Holder: true, Type: 3, Port: 4, Initiator: "i,i,0x1"}})
	want := unhex(t, "00000001 00000030 0000000000000002 00000000 01 03 00000000 0004 00000018 45 00 0014"+hex.EncodeToString([]byte("i,i,0x1"))+strings.Repeat("00", 13))
	if !bytes.Equal(full, want) {
		t.Errorf("READ FULL STATUS\n got % x\nwant % x", full, want)
	}
	page := AppendVPD(nil, 0, VPDBlockLimits, BlockLimits{CompareAndWriteMax: 4}.Append)
	if len(page) != 64 || page[3] != 0x3c || page[4] != 0 || page[5] != 4 {
		t.Errorf("VPD B0 % x", page)
	}
}

// FuzzDecode feeds every decoder of what an initiator sends.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x28, 0, 0, 0, 0, 1, 0, 0, 8, 0}, []byte(nil))
	f.Add(append([]byte{0x83}, make([]byte, 15)...), copyList(2, 2))
	f.Add([]byte{0x5f, 0, 1, 0, 0, 0, 0, 0, 24, 0}, make([]byte, 24))
	f.Add([]byte{0x5f, 7, 1, 0, 0, 0, 0, 0, 72, 0}, append(make([]byte, 24), AppendTransportID(nil, "a,i,0x1")...))
	f.Add([]byte{0x15, 0x10, 0, 0, 24, 0}, []byte{0, 0, 0, 0, 0x0a, 0x0a, 2, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, cdb, list []byte) {
		if tr, ok := DecodeTransfer(cdb); ok && Opcode(cdb[0])>>5 == 0 && tr.Blocks == 0 {
			t.Fatal("a six-byte command of no blocks")
		}
		if len(cdb) >= 10 {
			DecodeInquiry(cdb)
			DecodeMode(cdb)
			DecodeLogSense(cdb)
			if p, check := DecodePersistOut(cdb, list); check == nil && p.Action == ActionPersistRegisterMove && len(p.Initiators) != 1 {
				t.Fatal("a move to nobody")
			}
		}
		if e, check := DecodeUnmap(list); check == nil {
			for i := range e.Len() {
				e.At(i)
			}
		}
		if c, check := DecodeCopy(list); check == nil && (len(c.Targets) > CopyTargetsMax || len(c.Segments) > CopySegmentsMax) {
			t.Fatalf("%d targets, %d segments", len(c.Targets), len(c.Segments))
		}
		for _, ten := range []bool{false, true} {
			DecodeModeSelect(list, ten, Mode{}, 100, 512)
		}
		DecodeSense(list)
	})
}
