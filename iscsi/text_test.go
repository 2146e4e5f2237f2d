package iscsi

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParseText(t *testing.T) {
	got, err := ParseText([]byte("A=1\x00B=\x00\x00C=x=y"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Pair{{"A", "1"}, {"B", ""}, {"C", "x=y"}}, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"A", "=1\x00", "1A=x\x00", "A B=x\x00", strings.Repeat("K", 64) + "=1", "A=" + strings.Repeat("v", 9000)} {
		if _, err := ParseText([]byte(bad)); err == nil {
			t.Errorf("%.20q accepted", bad)
		}
	}
}

func TestTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var wire []byte
		var want []Pair
		for range rapid.IntRange(0, 8).Draw(t, "pairs") {
			p := Pair{rapid.StringMatching(`[A-Z][A-Za-z0-9.@_+-]{0,62}`).Draw(t, "key"), rapid.StringMatching(`[ -~]{0,300}`).Draw(t, "value")}
			want = append(want, p)
			wire = AppendPair(wire, p.Key, p.Value)
		}
		got, err := ParseText(wire)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestBinary(t *testing.T) {
	for in, want := range map[string][]byte{
		"0x1": {1}, "0X0aFf": {0x0a, 0xff}, "0bAQID": {1, 2, 3}, "0BAQI=": {1, 2}, "0bAQI": {1, 2},
	} {
		if got, err := ParseBinary(in); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "0", "0x", "0b", "12", "0xzz", "0b****", "0bAQ\nID"} {
		if got, err := ParseBinary(in); err == nil {
			t.Errorf("%q accepted as %x", in, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "bytes")
		if got, err := ParseBinary(FormatBinary(want)); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%x, %v", got, err)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.2001-04.com.example\x00MaxBurstLength=0x1000\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := ParseText(b)
		if err != nil {
			return
		}
		n := Negotiation{Own: DefaultParams()}
		var out []byte
		for _, p := range pairs {
			if out, err = n.Answer(out, p); err != nil {
				return
			}
		}
		// What we answer is text itself, and the result is usable.
		if _, err := ParseText(out); err != nil && len(out) <= MaxTextLength {
			t.Fatalf("answer %q: %v", out, err)
		}
		r := n.Result()
		if r.MaxBurstLength < 512 || r.FirstBurstLength > r.MaxBurstLength || r.MaxSendLength < 512 || r.MaxOutstandingR2T < 1 {
			t.Fatalf("%+v", r)
		}
	})
}

func FuzzBinary(f *testing.F) {
	f.Add("0x00ff")
	f.Add("0bAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBinary(s); err == nil && (len(b) == 0 || len(b) > len(s)) {
			t.Fatalf("%d bytes of %d", len(b), len(s))
		}
	})
}

// own are the values a target offers in these tests.
func own() Params {
	p := DefaultParams()
	p.InitialR2T = false
	p.MaxBurstLength, p.FirstBurstLength, p.MaxOutstandingR2T, p.DefaultTime2Retain = 1<<20, 262144, 4, 0
	p.MaxRecvLength = 262144
	return p
}

// TestNegotiation has every key's rule, one by one. RFC 7143, 13.
func TestNegotiation(t *testing.T) {
	for _, c := range []struct {
		offer, answer string
		get           func(Params) any
		want          any
	}{
		{"HeaderDigest=None", "None", func(p Params) any { return p.HeaderDigest }, false},
		{"HeaderDigest=CRC32C,None", "CRC32C", func(p Params) any { return p.HeaderDigest }, true},
		{"HeaderDigest=None,CRC32C", "None", func(p Params) any { return p.HeaderDigest }, false},
		{"HeaderDigest=X-other,CRC32C", "CRC32C", func(p Params) any { return p.HeaderDigest }, true},
		{"HeaderDigest=X-other", "Reject", func(p Params) any { return p.HeaderDigest }, false},
		{"DataDigest=CRC32C", "CRC32C", func(p Params) any { return p.DataDigest }, true},
		{"MaxConnections=8", "1", func(p Params) any { return p.MaxConnections }, 1},
		{"MaxConnections=0", "Reject", func(p Params) any { return p.MaxConnections }, 1},
		{"InitialR2T=Yes", "Yes", func(p Params) any { return p.InitialR2T }, true},
		{"InitialR2T=No", "No", func(p Params) any { return p.InitialR2T }, false},
		{"InitialR2T=Maybe", "Reject", func(p Params) any { return p.InitialR2T }, true},
		{"ImmediateData=Yes", "Yes", func(p Params) any { return p.ImmediateData }, true},
		{"ImmediateData=No", "No", func(p Params) any { return p.ImmediateData }, false},
		{"ImmediateData=yes", "Reject", func(p Params) any { return p.ImmediateData }, true},
		{"MaxRecvDataSegmentLength=65536", "", func(p Params) any { return p.MaxSendLength }, 65536},
		{"MaxRecvDataSegmentLength=0x10000", "", func(p Params) any { return p.MaxSendLength }, 65536},
		{"MaxBurstLength=16776192", "1048576", func(p Params) any { return p.MaxBurstLength }, 1 << 20},
		{"MaxBurstLength=65536", "65536", func(p Params) any { return p.MaxBurstLength }, 65536},
		{"MaxBurstLength=511", "Reject", func(p Params) any { return p.MaxBurstLength }, 262144},
		{"MaxBurstLength=-1", "Reject", func(p Params) any { return p.MaxBurstLength }, 262144},
		{"MaxBurstLength=99999999999999999999999", "Reject", func(p Params) any { return p.MaxBurstLength }, 262144},
		{"FirstBurstLength=131072", "131072", func(p Params) any { return p.FirstBurstLength }, 131072},
		{"FirstBurstLength=1048576", "262144", func(p Params) any { return p.FirstBurstLength }, 262144},
		{"DefaultTime2Wait=5", "5", func(p Params) any { return p.DefaultTime2Wait }, 5},
		{"DefaultTime2Wait=0", "2", func(p Params) any { return p.DefaultTime2Wait }, 2},
		{"DefaultTime2Retain=60", "0", func(p Params) any { return p.DefaultTime2Retain }, 0},
		{"DefaultTime2Retain=3601", "Reject", func(p Params) any { return p.DefaultTime2Retain }, 20},
		{"MaxOutstandingR2T=16", "4", func(p Params) any { return p.MaxOutstandingR2T }, 4},
		{"MaxOutstandingR2T=2", "2", func(p Params) any { return p.MaxOutstandingR2T }, 2},
		{"DataPDUInOrder=No", "Yes", func(p Params) any { return p.DataPDUInOrder }, true},
		{"DataSequenceInOrder=No", "Yes", func(p Params) any { return p.DataSequenceInOrder }, true},
		{"ErrorRecoveryLevel=2", "0", func(p Params) any { return p.ErrorRecoveryLevel }, 0},
		{"ErrorRecoveryLevel=3", "Reject", func(p Params) any { return p.ErrorRecoveryLevel }, 0},
		{"TaskReporting=FastAbort,RFC3720", "RFC3720", nil, nil},
		{"TaskReporting=FastAbort", "Reject", nil, nil},
		{"iSCSIProtocolLevel=2", "1", func(p Params) any { return p.ProtocolLevel }, 1},
		{"iSCSIProtocolLevel=0", "0", func(p Params) any { return p.ProtocolLevel }, 0},
		{"iSCSIProtocolLevel=32", "Reject", func(p Params) any { return p.ProtocolLevel }, 1},
		{"AuthMethod=None", "Reject", nil, nil},
		{"TargetPortalGroupTag=1", "Reject", nil, nil},
		{"IFMarker=No", "No", nil, nil},
		{"OFMarker=Yes", "No", nil, nil},
		{"IFMarkInt=1~65535", "Irrelevant", nil, nil},
		{"X-com.example.key=1", "NotUnderstood", nil, nil},
		{"Unheard=of", "NotUnderstood", nil, nil},
		{"RDMAExtensions=Yes", "NotUnderstood", nil, nil},
	} {
		key, value, _ := strings.Cut(c.offer, "=")
		n := Negotiation{Own: own()}
		n.Own.MaxSendLength = 8192
		out, err := n.Answer(nil, Pair{key, value})
		if err != nil {
			t.Errorf("%s: %v", c.offer, err)
			continue
		}
		want := ""
		if c.answer != "" {
			want = fmt.Sprintf("%s=%s\x00", key, c.answer)
		}
		if string(out) != want {
			t.Errorf("%s: answer %q, want %q", c.offer, out, want)
		}
		if c.get != nil {
			if got := c.get(n.Result()); got != c.want {
				t.Errorf("%s: result %v, want %v", c.offer, got, c.want)
			}
		}
	}
}

func TestNegotiationBreaks(t *testing.T) {
	for _, bad := range []string{"MaxRecvDataSegmentLength=511", "MaxRecvDataSegmentLength=x", "MaxRecvDataSegmentLength=16777216"} {
		key, value, _ := strings.Cut(bad, "=")
		n := Negotiation{Own: own()}
		if _, err := n.Answer(nil, Pair{key, value}); err == nil {
			t.Errorf("%s accepted", bad)
		}
	}
	n := Negotiation{Own: own()}
	if _, err := n.Answer(nil, Pair{"ImmediateData", "No"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Answer(nil, Pair{"ImmediateData", "Yes"}); err == nil {
		t.Error("a key negotiated twice was accepted")
	}
}

// What nobody offers has the RFC's default, not our wish.
func TestNegotiationDefaults(t *testing.T) {
	n := Negotiation{Own: own()}
	n.Own.MaxSendLength = 8192
	want := DefaultParams()
	want.MaxRecvLength = 262144
	if diff := cmp.Diff(want, n.Result()); diff != "" {
		t.Error(diff)
	}
}

// FirstBurstLength never exceeds MaxBurstLength, in whichever order they come.
func TestBurstOrder(t *testing.T) {
	for _, offers := range [][2]string{{"MaxBurstLength", "FirstBurstLength"}, {"FirstBurstLength", "MaxBurstLength"}} {
		n := Negotiation{Own: own()}
		value := map[string]string{"MaxBurstLength": "4096", "FirstBurstLength": "65536"}
		var out []byte
		for _, key := range offers {
			var err error
			if out, err = n.Answer(out, Pair{key, value[key]}); err != nil {
				t.Fatal(err)
			}
		}
		if r := n.Result(); r.FirstBurstLength != 4096 || r.MaxBurstLength != 4096 {
			t.Errorf("%v: %+v", offers, r)
		}
		if offers[0] == "MaxBurstLength" && string(out) != "MaxBurstLength=4096\x00FirstBurstLength=4096\x00" {
			t.Errorf("answers %q", out)
		}
	}
}

func TestNegotiationElsewhere(t *testing.T) {
	d := Negotiation{Own: own(), Discovery: true}
	if out, _ := d.Answer(nil, Pair{"MaxBurstLength", "4096"}); string(out) != "MaxBurstLength=Irrelevant\x00" {
		t.Errorf("discovery: %q", out)
	}
	f := Negotiation{Own: own(), FullFeature: true}
	if out, _ := f.Answer(nil, Pair{"MaxBurstLength", "4096"}); string(out) != "MaxBurstLength=Reject\x00" {
		t.Errorf("full feature: %q", out)
	}
	if out, err := f.Answer(nil, Pair{"MaxRecvDataSegmentLength", "4096"}); err != nil || len(out) != 0 || f.Own.MaxSendLength != 4096 {
		t.Errorf("full feature: %q, %v", out, err)
	}
}
