package iscsi

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testPolicy admits one initiator to one target.
type testPolicy struct {
	auth    Auth
	status  LoginStatus // for Enter
	entered bool
}

func (p *testPolicy) Admit(id Identity) (Auth, LoginStatus) {
	switch {
	case id.Discovery:
		return p.auth, LoginSuccess
	case id.TargetName != "iqn.2026-11.test:t":
		return Auth{}, LoginNotFound
	case id.InitiatorName != "iqn.2026-11.test:i":
		return Auth{}, LoginForbidden
	}
	return p.auth, LoginSuccess
}

func (p *testPolicy) Enter(Identity, Params) (uint16, LoginStatus) {
	p.entered = true
	return 77, p.status
}

func (p *testPolicy) Random(b []byte) {
	for i := range b {
		b[i] = byte(i + 1)
	}
}

const names = "InitiatorName=iqn.2026-11.test:i\nTargetName=iqn.2026-11.test:t\n"

// request is one login request in a table: "csg>nsg" (no transit without
// ">nsg"), and its text with newlines for NULs.
type request struct {
	stages, text string
	edit         func(*Header)
}

// play feeds requests and returns the transcript.
func play(t *testing.T, l *Login, reqs []request) string {
	t.Helper()
	var out strings.Builder
	for _, r := range reqs {
		if l.Done || l.Failed {
			t.Fatal("request after the end")
		}
		var h Header
		h.SetOpcode(OpLoginReq)
		h.SetImmediate()
		h.SetInitiatorTag(5)
		h.SetISID(ISID{0x80, 1})
		var csg, nsg Stage
		n, _ := fmt.Sscanf(r.stages, "%d>%d", &csg, &nsg)
		h.SetStages(n == 2, false, csg, nsg)
		if r.edit != nil {
			r.edit(&h)
		}
		resp, text := l.Step(&h, []byte(strings.ReplaceAll(r.text, "\n", "\x00")))
		if resp.DataLength() != len(text) {
			t.Fatalf("length %d of %d", resp.DataLength(), len(text))
		}
		fmt.Fprintf(&out, "%d>%d T=%v C=%v %v tsih=%d %s\n", resp.CSG(), resp.NSG(), resp.Transit(), resp.Continue(),
			resp.LoginStatus(), resp.TSIH(), strings.ReplaceAll(strings.TrimSuffix(string(text), "\x00"), "\x00", " "))
	}
	return out.String()
}

func secret(s string) *Credentials {
	return &Credentials{Name: s, Secret: []byte("the secret of " + s)}
}

// proof is the initiator's CHAP answer to the test policy's challenge.
func proof(a CHAPAlgorithm, c *Credentials) string {
	challenge := make([]byte, challengeLength(a))
	(*testPolicy)(nil).Random(challenge)
	return fmt.Sprintf("CHAP_N=%s\nCHAP_R=%s\n", c.Name, FormatBinary(CHAPResponse(a, 1, c.Secret, challenge)))
}

func TestLogin(t *testing.T) {
	in, mutual := secret("initiator"), secret("target")
	md5Challenge := "0x0102030405060708090a0b0c0d0e0f10"
	shaChallenge := "0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
	for _, c := range []struct {
		name string
		auth Auth
		reqs []request
		want string // the last response
		done bool
	}{
		{
			"straight to operational",
			Auth{},
			[]request{{"1>3", names, nil}},
			"1>3 T=true C=false success tsih=77 TargetPortalGroupTag=1 MaxRecvDataSegmentLength=262144", true,
		},
		{
			"security first",
			Auth{},
			[]request{{"0>1", names + "AuthMethod=CHAP,None\n", nil}},
			"0>1 T=true C=false success tsih=0 AuthMethod=None TargetPortalGroupTag=1", false,
		},
		{
			"security to full feature",
			Auth{},
			[]request{{"0>3", names + "AuthMethod=None\n", nil}},
			"0>3 T=true C=false success tsih=77 AuthMethod=None TargetPortalGroupTag=1 MaxRecvDataSegmentLength=262144", true,
		},
		{
			"no transit asked",
			Auth{},
			[]request{{"1", names, nil}},
			"1>0 T=false C=false success tsih=0 TargetPortalGroupTag=1 MaxRecvDataSegmentLength=262144", false,
		},
		{
			"discovery without target",
			Auth{},
			[]request{{"1>3", "InitiatorName=iqn.2026-11.test:x\nSessionType=Discovery\n", nil}},
			"1>3 T=true C=false success tsih=77 MaxRecvDataSegmentLength=262144", true,
		},
		{
			"upper case",
			Auth{},
			[]request{{"1>3", "InitiatorName=IQN.2026-11.TEST:I\nTargetName=iqn.2026-11.test:T\n", nil}},
			"1>3 T=true C=false success tsih=77 TargetPortalGroupTag=1 MaxRecvDataSegmentLength=262144", true,
		},

		{
			"unknown target",
			Auth{},
			[]request{{"1>3", "InitiatorName=iqn.2026-11.test:i\nTargetName=iqn.2026-11.test:u\n", nil}},
			"1>0 T=false C=false target not found tsih=0 ", false,
		},
		{
			"initiator not on the list",
			Auth{},
			[]request{{"1>3", "InitiatorName=iqn.2026-11.test:j\nTargetName=iqn.2026-11.test:t\n", nil}},
			"1>0 T=false C=false authorization failure tsih=0 ", false,
		},
		{
			"no initiator name",
			Auth{},
			[]request{{"1>3", "TargetName=iqn.2026-11.test:t\n", nil}},
			"1>0 T=false C=false missing parameter tsih=0 ", false,
		},
		{
			"no target name",
			Auth{},
			[]request{{"1>3", "InitiatorName=iqn.2026-11.test:i\n", nil}},
			"1>0 T=false C=false missing parameter tsih=0 ", false,
		},
		{
			"bad initiator name",
			Auth{},
			[]request{{"1>3", "InitiatorName=me\nTargetName=iqn.2026-11.test:t\n", nil}},
			"1>0 T=false C=false initiator error tsih=0 ", false,
		},
		{
			"strange session type",
			Auth{},
			[]request{{"1>3", names + "SessionType=Odd\n", nil}},
			"1>0 T=false C=false session type not supported tsih=0 ", false,
		},
		{
			"version",
			Auth{},
			[]request{{"1>3", names, func(h *Header) { h.SetVersions(2, 1) }}},
			"1>0 T=false C=false unsupported version tsih=0 ", false,
		},
		{"stage 2", Auth{}, []request{{"2>3", names, nil}}, "2>0 T=false C=false initiator error tsih=0 ", false},
		{"backwards", Auth{}, []request{{"1>1", names, nil}}, "1>0 T=false C=false initiator error tsih=0 ", false},
		{
			"another ISID later",
			Auth{},
			[]request{{"1", names, nil}, {"1>3", "", func(h *Header) { h.SetISID(ISID{9}) }}},
			"1>0 T=false C=false invalid request during login tsih=0 ", false,
		},
		{"malformed text", Auth{}, []request{{"1>3", names + "nonsense\n", nil}}, "1>0 T=false C=false initiator error tsih=0 ", false},
		{
			"key twice",
			Auth{},
			[]request{{"1", names + "ImmediateData=No\n", nil}, {"1>3", "ImmediateData=No\n", nil}},
			"1>0 T=false C=false initiator error tsih=0 ", false,
		},

		{"secret skipped", Auth{In: in}, []request{{"1>3", names, nil}}, "1>0 T=false C=false authentication failure tsih=0 ", false},
		{
			"none offered",
			Auth{In: in},
			[]request{{"0>1", names + "AuthMethod=None\n", nil}},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{"no method named", Auth{In: in}, []request{{"0>1", names, nil}}, "0>0 T=false C=false authentication failure tsih=0 ", false},
		{
			"only kerberos",
			Auth{},
			[]request{{"0>1", names + "AuthMethod=KRB5\n", nil}},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"challenge md5",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP,None\n", nil}, {"0", "CHAP_A=5\n", nil}},
			"0>0 T=false C=false success tsih=0 CHAP_A=5 CHAP_I=1 CHAP_C=" + md5Challenge, false,
		},
		{
			"challenge sha256",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0", "CHAP_A=8,7,5\n", nil}},
			"0>0 T=false C=false success tsih=0 CHAP_A=7 CHAP_I=1 CHAP_C=" + shaChallenge, false,
		},
		{
			"no algorithm",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0", "CHAP_A=56\n", nil}},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"empty algorithm",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0", "CHAP_A=\n", nil}},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"proven md5",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0", "CHAP_A=5\n", nil}, {"0>1", proof(CHAPMD5, in), nil}},
			"0>1 T=true C=false success tsih=0 ", false,
		},
		{
			"proven sha256",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0", "CHAP_A=7\n", nil}, {"0>3", proof(CHAPSHA256, in), nil}},
			"0>3 T=true C=false success tsih=77 MaxRecvDataSegmentLength=262144", true,
		},
		{
			"wrong secret",
			Auth{In: in},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", strings.Replace(proof(CHAPMD5, mutual), "target", "initiator", 1), nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"wrong name",
			Auth{In: in},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", strings.Replace(proof(CHAPMD5, in), "initiator", "other", 1), nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"overlong response",
			Auth{In: in},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", strings.TrimSuffix(proof(CHAPMD5, in), "\n") + "00\n", nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"proof before challenge",
			Auth{In: in},
			[]request{{"0", names + "AuthMethod=CHAP\n", nil}, {"0>1", proof(CHAPMD5, in), nil}},
			"0>0 T=false C=false success tsih=0 ", false,
		},
		{
			"mutual",
			Auth{In: in, Mutual: mutual},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", proof(CHAPMD5, in) + "CHAP_I=7\nCHAP_C=0x00112233\n", nil},
			},
			"0>1 T=true C=false success tsih=0 CHAP_N=target CHAP_R=" +
				FormatBinary(CHAPResponse(CHAPMD5, 7, mutual.Secret, []byte{0, 0x11, 0x22, 0x33})), false,
		},
		{
			"mutual without secret",
			Auth{In: in},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", proof(CHAPMD5, in) + "CHAP_I=7\nCHAP_C=0x00112233\n", nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"reflected challenge",
			Auth{In: in, Mutual: mutual},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", proof(CHAPMD5, in) + "CHAP_I=7\nCHAP_C=" + md5Challenge + "\n", nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"half a challenge",
			Auth{In: in, Mutual: mutual},
			[]request{
				{"0", names + "AuthMethod=CHAP\n", nil},
				{"0", "CHAP_A=5\n", nil},
				{"0>1", proof(CHAPMD5, in) + "CHAP_I=7\n", nil},
			},
			"0>0 T=false C=false authentication failure tsih=0 ", false,
		},
		{
			"keys of the security stage later",
			Auth{},
			[]request{{"1", names + "CHAP_A=5\n", nil}},
			"1>0 T=false C=false initiator error tsih=0 ", false,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &testPolicy{auth: c.auth}
			l := NewLogin(p, own(), 1)
			lines := strings.Split(strings.TrimSuffix(play(t, l, c.reqs), "\n"), "\n")
			if diff := cmp.Diff(c.want, lines[len(lines)-1]); diff != "" {
				t.Error(diff)
			}
			if l.Done != c.done || p.entered != c.done {
				t.Errorf("done %v, entered %v: %v", l.Done, p.entered, l.Why)
			}
			if l.Why != nil && (strings.Contains(l.Why.Error(), "secret of") || bytes.Contains([]byte(l.Why.Error()), in.Secret)) {
				t.Errorf("the log would tell a secret: %v", l.Why)
			}
		})
	}
}

// Text split over requests by the C bit, and an answer longer than the
// initiator takes at once.
func TestLoginContinues(t *testing.T) {
	l := NewLogin(&testPolicy{}, own(), 1)
	cont := func(h *Header) { h.SetStages(false, true, StageOperational, 0) }
	got := play(t, l, []request{{"1", "InitiatorName=iqn.2026-", cont}, {"1>3", "11.test:i\nTargetName=iqn.2026-11.test:t\n", nil}})
	if !l.Done {
		t.Fatal(got, l.Why)
	}

	var long strings.Builder
	for i := range 800 {
		fmt.Fprintf(&long, "X-key-%d=v\n", i)
	}
	l = NewLogin(&testPolicy{}, own(), 1)
	got = play(t, l, []request{{"1>3", names + long.String(), nil}, {"1>3", "", nil}, {"1>3", "", nil}})
	if !l.Done || strings.Count(got, "NotUnderstood") < 790 || !strings.Contains(got, "C=true") {
		t.Fatal(got, l.Why)
	}

	l = NewLogin(&testPolicy{}, own(), 1)
	for range maxLoginRounds + 1 {
		var h Header
		h.SetStages(false, true, StageOperational, 0)
		if l.Failed {
			break
		}
		l.Step(&h, nil)
	}
	if !l.Failed {
		t.Error("a login without end")
	}
}

func TestCredentials(t *testing.T) {
	in := secret("a")
	for name, a := range map[string]Auth{
		"short":       {In: &Credentials{Name: "a", Secret: []byte("short")}},
		"no name":     {In: &Credentials{Secret: []byte("long enough, really")}},
		"only mutual": {Mutual: in},
		"same secret": {In: in, Mutual: &Credentials{Name: "b", Secret: in.Secret}},
	} {
		if a.Check() == nil {
			t.Errorf("%s accepted", name)
		}
	}
	if err := (Auth{In: in, Mutual: secret("b")}).Check(); err != nil {
		t.Error(err)
	}
	for _, s := range []string{fmt.Sprint(*in), fmt.Sprintf("%+v", in), fmt.Sprintf("%#v", *in), fmt.Sprintf("%v", Auth{In: in})} {
		if strings.Contains(s, "secret of") {
			t.Errorf("%s prints the secret", s)
		}
	}
}

// FuzzLogin feeds a login as many requests as the input has: each a byte of
// flags, a byte of length and so much text. The first byte says whether a
// secret is asked for.
func FuzzLogin(f *testing.F) {
	step := func(flags byte, text string) []byte {
		text = strings.ReplaceAll(text, "\n", "\x00")
		return append([]byte{flags, byte(len(text))}, text...)
	}
	f.Add(append([]byte{0}, step(0x87, names+"InitialR2T=No\nMaxBurstLength=4096\n")...))
	f.Add(append(append([]byte{0}, step(0x40, names)...), step(0x81, "AuthMethod=None\n")...))
	f.Add(append(append(append([]byte{1}, step(0x00, names+"AuthMethod=CHAP,None\n")...), step(0x00, "CHAP_A=7,5\n")...),
		step(0x81, "CHAP_N=initiator\nCHAP_R=0x00112233445566778899aabbccddeeff\nCHAP_I=1\nCHAP_C=0x01020304\n")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		p := &testPolicy{}
		if b[0]&1 != 0 {
			p.auth = Auth{In: secret("initiator"), Mutual: secret("target")}
		}
		l := NewLogin(p, own(), 1)
		for b = b[1:]; len(b) >= 2 && !l.Done && !l.Failed; {
			n := min(int(b[1]), len(b)-2)
			var h Header
			h.SetOpcode(OpLoginReq)
			h.SetFlags(b[0])
			resp, text := l.Step(&h, b[2:2+n])
			b = b[2+n:]
			if resp.DataLength() != len(text) || len(text) > DefaultParams().MaxSendLength {
				t.Fatalf("answer of %d bytes says %d", len(text), resp.DataLength())
			}
			if l.Failed != (resp.LoginStatus() != LoginSuccess) || l.Failed != (l.Why != nil) || l.Done && l.Failed {
				t.Fatalf("done %v, failed %v, status %v, why %v", l.Done, l.Failed, resp.LoginStatus(), l.Why)
			}
			if resp.Transit() && resp.Continue() {
				t.Fatal("transit in the middle of a text")
			}
		}
		if l.Done != p.entered || l.Done && p.auth.In != nil && l.step != authProven {
			t.Fatal("logged in without a proof")
		}
	})
}

// FuzzCHAP plays the initiator's side of CHAP without knowing the secret.
func FuzzCHAP(f *testing.F) {
	f.Add("5", "initiator", "0x00112233445566778899aabbccddeeff", "7", "0x01020304")
	f.Add("7,5", "initiator", "0bAAECAwQFBgcICQoLDA0ODw==", "255", "0bAAAA")
	f.Fuzz(func(t *testing.T, list, name, response, id, challenge string) {
		var c chap
		b, err := c.begin(nil, list, (*testPolicy)(nil).Random)
		if err != nil {
			return
		}
		if _, err := ParseText(b); err != nil {
			t.Fatalf("challenge %q: %v", b, err)
		}
		in := secret("initiator")
		got, _ := ParseBinary(response)
		knows := bytes.Equal(got, CHAPResponse(c.algorithm, c.id, in.Secret, c.challenge))
		p := chapProof{name: name, response: response, identifier: id, challenge: challenge, wantsMutual: true}
		b, err = c.verify(nil, p, in, secret("target"))
		if err == nil && !knows {
			t.Fatal("proven without the secret")
		}
		if err != nil && len(b) != 0 {
			t.Fatal("an answer beside a refusal")
		}
	})
}
