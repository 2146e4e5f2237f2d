package iscsi

import (
	"errors"
	"strings"
	"testing"
)

// meet plays a login of both sides and returns the initiator's error.
func meet(t *testing.T, l *Initiate, target *Login) error {
	t.Helper()
	l.Random = func(b []byte) {
		for i := range b {
			b[i] = byte(0xc0 + i)
		}
	}
	for sn := uint32(7); !l.Done; sn++ {
		req, text := l.Request()
		resp, answer := target.Step(&req, text)
		resp.SetStatSN(sn)
		if err := l.Take(&resp, answer); err != nil {
			return err
		}
		if target.Done != l.Done {
			t.Fatalf("the target is done: %v, the initiator: %v", target.Done, l.Done)
		}
		if target.Failed {
			t.Fatalf("the target failed, and the initiator goes on: %v", target.Why)
		}
		if sn > 50 {
			t.Fatal("no end")
		}
	}
	return nil
}

func testInitiate() *Initiate {
	offer := DefaultParams()
	offer.InitialR2T, offer.DefaultTime2Wait, offer.DefaultTime2Retain = false, 0, 0
	offer.MaxBurstLength, offer.MaxRecvLength, offer.MaxOutstandingR2T = 1<<20, 300<<10, 8
	return &Initiate{
		InitiatorName: "iqn.2026-11.test:i", TargetName: "iqn.2026-11.test:t",
		ISID: ISID{0x80, 1, 2, 3, 4, 5}, Offer: offer,
	}
}

// TestInitiateMeetsLogin has our initiator log in to our target, in every way
// that both have.
func TestInitiateMeetsLogin(t *testing.T) {
	in := &Credentials{"user", []byte("secret-of-initiator")}
	mutual := &Credentials{"target", []byte("secret-of-the-target")}
	other := &Credentials{"user", []byte("another-secret-it-is")}
	for _, tc := range []struct {
		name         string
		edit         func(*Initiate)
		auth         Auth
		enter        LoginStatus
		want         LoginStatus // refused by the target
		mutual, fine bool
	}{
		{name: "open", fine: true},
		{name: "open, with a secret", edit: func(l *Initiate) { l.Auth.In = in }, fine: true},
		{name: "CHAP", edit: func(l *Initiate) { l.Auth.In = in }, auth: Auth{In: in}, fine: true},
		{name: "CHAP both ways", edit: func(l *Initiate) { l.Auth = Auth{in, mutual} }, auth: Auth{in, mutual}, fine: true},
		{name: "CHAP by MD5", edit: func(l *Initiate) { l.Auth.In, l.MD5Only = in, true }, auth: Auth{In: in}, fine: true},
		{name: "no secret", auth: Auth{In: in}, want: LoginAuthFailure},
		{name: "wrong secret", edit: func(l *Initiate) { l.Auth.In = other }, auth: Auth{In: in}, want: LoginAuthFailure},
		{name: "target lies", edit: func(l *Initiate) { l.Auth = Auth{in, other} }, auth: Auth{in, mutual}, mutual: true},
		{name: "target needs none, and should prove itself", edit: func(l *Initiate) { l.Auth = Auth{in, mutual} }, want: LoginAuthFailure},
		{name: "digests", edit: func(l *Initiate) { l.Offer.HeaderDigest, l.Offer.DataDigest = true, true }, fine: true},
		{name: "discovery", edit: func(l *Initiate) { l.Discovery, l.TargetName = true, "" }, fine: true},
		{name: "unknown target", edit: func(l *Initiate) { l.TargetName = "iqn.2026-11.test:x" }, want: LoginNotFound},
		{name: "unavailable", enter: LoginUnavailable, want: LoginUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := testInitiate()
			if tc.edit != nil {
				tc.edit(l)
			}
			own := DefaultParams()
			own.InitialR2T, own.MaxBurstLength, own.DefaultTime2Wait = false, 512<<10, 0
			target := NewLogin(&testPolicy{auth: tc.auth, status: tc.enter}, own, 9)
			target.Alias = strings.Repeat("a", 40)
			err := meet(t, l, target)
			var no *LoginRefused
			switch {
			case tc.fine:
				if err != nil {
					t.Fatal(err)
				}
				if !l.Discovery && (!l.HasGroup || l.Group != 9 || l.Alias != target.Alias || l.TSIH != 77) {
					t.Errorf("learned %+v", l)
				}
				mine, theirs := l.Params, target.Params
				mine.MaxSendLength, mine.MaxRecvLength = mine.MaxRecvLength, mine.MaxSendLength
				if mine != theirs {
					t.Errorf("agreed on different things:\n%+v\n%+v", mine, theirs)
				}
				if l.Params.HeaderDigest != l.Offer.HeaderDigest || !l.Discovery && l.Params.MaxBurstLength != 512<<10 {
					t.Errorf("not what was offered: %+v", l.Params)
				}
			case tc.mutual:
				if !errors.Is(err, ErrMutual) {
					t.Fatalf("%v, want ErrMutual", err)
				}
			case !errors.As(err, &no) || no.Status != tc.want:
				t.Fatalf("%v, want %v", err, tc.want)
			}
		})
	}
}

// TestInitiateDisbelieves feeds responses that no target may send.
func TestInitiateDisbelieves(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(h *Header, text string) string
		at   int // which response
		want string
	}{
		{"opcode", func(h *Header, s string) string { h.SetOpcode(OpNopIn); return s }, 0, "in answer to a login"},
		{"ISID", func(h *Header, s string) string { h.SetISID(ISID{1}); return s }, 0, "ISID"},
		{"refusal of zeros", func(h *Header, _ string) string {
			*h = Header{}
			h.SetOpcode(OpLoginResp)
			h.SetLoginStatus(LoginAuthFailure)
			return ""
		}, 1, "authentication failure"},
		{"StatSN", func(h *Header, s string) string { h.SetStatSN(99); return s }, 1, "StatSN"},
		{"method", func(_ *Header, _ string) string { return "AuthMethod=KRB5\x00" }, 0, "not what was offered"},
		{"stage", func(h *Header, s string) string { h.SetStages(true, false, 1, 3); return s }, 0, "stage"},
		{"too far", func(h *Header, s string) string { h.SetStages(true, false, 0, 3); return s }, 0, "before its end"},
		{"C and T", func(h *Header, s string) string { h.SetStages(true, true, 0, 1); return s }, 0, "continues and transits"},
		{"garbage", func(_ *Header, _ string) string { return "\xff\xfe" }, 0, "without '='"},
		{"tag", func(_ *Header, s string) string { return "TargetPortalGroupTag=70000\x00" + s }, 0, "TargetPortalGroupTag"},
		{"more burst", func(_ *Header, _ string) string { return "MaxBurstLength=16777215\x00" }, 1, "no answer"},
		{"No of an OR", func(_ *Header, _ string) string { return "DataPDUInOrder=No\x00" }, 1, "no answer"},
		{"digest", func(_ *Header, _ string) string { return "HeaderDigest=CRC32C\x00" }, 1, "no answer"},
		{"segment", func(_ *Header, _ string) string { return "MaxRecvDataSegmentLength=0\x00" }, 1, "not between"},
		{"level", func(_ *Header, _ string) string { return "ErrorRecoveryLevel=2\x00" }, 1, "no answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := testInitiate()
			own := DefaultParams()
			target := NewLogin(&testPolicy{}, own, 1)
			for i := 0; ; i++ {
				req, text := l.Request()
				resp, answer := target.Step(&req, text)
				resp.SetStatSN(uint32(i))
				if i == tc.at {
					answer = []byte(tc.edit(&resp, string(answer)))
				}
				err := l.Take(&resp, answer)
				if i < tc.at && err == nil {
					continue
				}
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("%v, want %q", err, tc.want)
				}
				return
			}
		})
	}
}

// TestInitiateMoved reads where a target went.
func TestInitiateMoved(t *testing.T) {
	l := testInitiate()
	l.Request()
	var h Header
	h.SetOpcode(OpLoginResp)
	h.SetISID(l.ISID)
	h.SetLoginStatus(LoginMovedTemporarily)
	err := l.Take(&h, []byte("TargetAddress=[fe80::1]:3260,4\x00"))
	var no *LoginRefused
	if !errors.As(err, &no) || no.Address != "[fe80::1]:3260" {
		t.Fatalf("%v", err)
	}
}

// FuzzInitiate feeds what comes from a target: two responses after another.
func FuzzInitiate(f *testing.F) {
	f.Add([]byte("AuthMethod=CHAP\x00TargetPortalGroupTag=1\x00"), []byte("CHAP_A=7\x00CHAP_I=1\x00CHAP_C=0x0102\x00"), byte(0), byte(0))
	f.Add([]byte("AuthMethod=None\x00"), []byte("MaxBurstLength=512\x00InitialR2T=Yes\x00X-a=b\x00"), byte(0x81), byte(0x87))
	f.Fuzz(func(t *testing.T, one, two []byte, f1, f2 byte) {
		l := testInitiate()
		l.Auth = Auth{In: &Credentials{"user", []byte("secret-of-initiator")}}
		l.Random = func(b []byte) { clear(b) }
		for i, b := range [][]byte{one, two, two} {
			if l.Done {
				break
			}
			req, text := l.Request()
			if req.DataLength() != len(text) || len(text) > MaxTextLength+1024 {
				t.Fatalf("request says %d bytes and has %d", req.DataLength(), len(text))
			}
			var h Header
			h.SetOpcode(OpLoginResp)
			h.SetISID(l.ISID)
			h.SetStatSN(uint32(i))
			h.SetFlags(f1)
			if i > 0 {
				h.SetFlags(f2)
			}
			if l.Take(&h, b) != nil {
				return
			}
		}
		if p := l.Params; l.Done && (p.FirstBurstLength > p.MaxBurstLength || p.MaxSendLength < MinSegmentLength || p.MaxBurstLength > l.Offer.MaxBurstLength) {
			t.Fatalf("agreed on %+v", p)
		}
	})
}
