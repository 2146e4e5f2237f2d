package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func initial(t *testing.T) *Identity {
	t.Helper()
	i, err := Init(t.TempDir(), "a")
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// serve answers one connection after another until the test ends.
func serve(t *testing.T, cfg *tls.Config, handle func(*tls.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, cfg)
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if conn.Handshake() == nil {
				handle(conn)
			}
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// admitting serves joins at i as a quorum would that has one token.
func admitting(t *testing.T, i *Identity, role quorum.Role, tokens *[]Token) string {
	t.Helper()
	var used quorum.Fingerprint
	admit := func(a Applicant) (Admission, error) {
		if len(*tokens) == 0 || a.Token != (*tokens)[0].Hash() || used != "" && used != a.Key {
			return Admission{}, fault.New(fault.Denied, "no such token")
		}
		used = a.Key
		r := quorum.Record{Name: a.Name, ID: 2, Role: role, Address: a.Address, Key: a.Key}
		return Admission{Record: r, Boot: 4, Members: []quorum.Record{r}}, nil
	}
	cfg := i.Server(func(Peer) error { return nil })
	return serve(t, cfg, func(c *tls.Conn) { _ = i.Serve(c, admit) })
}

func token(t *testing.T, i *Identity, address string) Token {
	t.Helper()
	tok, err := i.NewToken(address)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// join joins and keeps.
func join(t *testing.T, dir string, tok Token, name quorum.Member) (*Identity, error) {
	t.Helper()
	j, err := Join(t.Context(), dir, tok, name, "b:1", "")
	if err != nil {
		return nil, err
	}
	return j.Keep()
}

// TestInit makes a cluster once, with secrets for the owner's eyes only.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "down")
	i, err := Init(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	back, err := Load(dir)
	if err != nil || back.self != i.self || back.cluster != i.cluster || !back.Signs() {
		t.Fatalf("%v: %+v, was %+v", err, back, i)
	}
	if want := (Peer{"a", 1, i.self.Key}); i.Self() != want || len(i.Cluster()) != 32 {
		t.Errorf("it is %+v of %q", i.Self(), i.Cluster())
	}
	for _, name := range []string{fileCAKey, fileMemberKey} {
		if s, err := os.Stat(filepath.Join(dir, name)); err != nil || s.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, s.Mode(), err)
		}
	}
	if _, err := Init(dir, "b"); !fault.Is(err, fault.Exists) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := Init(t.TempDir(), "Not A Name"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a bad name: %v", err)
	}
	if _, err := Load(t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestLoadContradiction refuses parts that are not of one member.
func TestLoadContradiction(t *testing.T) {
	for _, name := range []string{fileCA, fileCAKey, fileMember, fileMemberKey} {
		dirs := []string{t.TempDir(), t.TempDir()}
		for _, dir := range dirs {
			if _, err := Init(dir, "a"); err != nil {
				t.Fatal(err)
			}
		}
		other, err := os.ReadFile(filepath.Join(dirs[1], name))
		if err != nil {
			t.Fatal(err)
		}
		for what, text := range map[string][]byte{"another's": other, "half of it": other[:len(other)/2]} {
			if err := os.WriteFile(filepath.Join(dirs[0], name), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dirs[0]); !fault.Is(err, fault.Corrupt) {
				t.Errorf("%s is %s: %v", name, what, err)
			}
		}
	}
}

// TestJoin has a node and a witness join: only the node can admit others then.
func TestJoin(t *testing.T) {
	for _, role := range []quorum.Role{quorum.RoleNode, quorum.RoleWitness} {
		a := initial(t)
		var tokens []Token
		tok := token(t, a, admitting(t, a, role, &tokens))
		tokens = append(tokens, tok)
		dir := t.TempDir()
		if _, err := Join(t.Context(), dir, tok, "b", "b:1", ""); err != nil {
			t.Fatal(err)
		}
		// It dies before it keeps what came, and asks again; another cannot.
		j, err := Join(t.Context(), dir, tok, "b", "b:1", "")
		if err != nil {
			t.Fatalf("again: %v", err)
		}
		if _, err := join(t, t.TempDir(), tok, "b"); !fault.Is(err, fault.Denied) {
			t.Errorf("the same token, another key: %v", err)
		}
		b, err := j.Keep()
		if err != nil {
			t.Fatal(err)
		}
		if j.Boot != 4 || len(j.Members) != 1 || b.Self().Name != "b" || b.Self().ID != 2 || b.Cluster() != a.Cluster() {
			t.Errorf("%s: %+v, %+v", role, j.Admission, b.Self())
		}
		if want := role == quorum.RoleNode; b.Signs() != want {
			t.Errorf("%s signs: %t", role, b.Signs())
		}
		if _, err := join(t, dir, tok, "b"); !fault.Is(err, fault.Exists) {
			t.Errorf("a directory that holds a member: %v", err)
		}
	}
}

// TestJoinRefused goes through what a joiner or its token can have wrong.
func TestJoinRefused(t *testing.T) {
	a, other := initial(t), initial(t)
	var tokens []Token
	address := admitting(t, a, quorum.RoleNode, &tokens)
	good := token(t, a, address)
	tokens = append(tokens, good)
	wrongCA, wrongCluster, wrongSecret, nobody := good, good, good, good
	wrongCA.ca = token(t, other, address).ca
	wrongCluster.cluster = token(t, other, address).cluster
	wrongSecret.secret[0] ^= 1
	nobody.address = "127.0.0.1:1"
	for name, tc := range map[string]struct {
		tok  Token
		want fault.Kind
	}{
		"another authority": {wrongCA, fault.Denied},
		"another cluster":   {wrongCluster, fault.Denied},
		"another's token":   {token(t, other, address), fault.Denied},
		"a wrong secret":    {wrongSecret, fault.Denied},
		"nobody there":      {nobody, fault.Unreachable},
	} {
		dir := t.TempDir()
		if _, err := join(t, dir, tc.tok, "b"); !fault.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Load(dir); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s left an identity: %v", name, err)
		}
	}
	if _, err := join(t, t.TempDir(), good, "b"); err != nil {
		t.Errorf("the token is still good: %v", err)
	}
}

// TestPeers holds members to certificate, key and name, both ways.
func TestPeers(t *testing.T) {
	a, stranger := initial(t), initial(t)
	var tokens []Token
	tok := token(t, a, admitting(t, a, quorum.RoleWitness, &tokens))
	tokens = append(tokens, tok)
	b, err := join(t, t.TempDir(), tok, "b")
	if err != nil {
		t.Fatal(err)
	}
	only := func(want Peer) func(Peer) error {
		return func(p Peer) error {
			if p != want {
				return fault.New(fault.Denied, "%s is not %s", p.Name, want.Name)
			}
			return nil
		}
	}
	address := serve(t, a.Server(only(b.Self()), "more/1", "more/2"), func(c *tls.Conn) { _, _ = c.Write([]byte("x")) })
	forged := *a
	forged.self = b.Self()
	for name, tc := range map[string]struct {
		cfg *tls.Config
		ok  bool
	}{
		"a member":             {b.Client(ProtoPeer, only(a.Self())), true},
		"another's key":        {forged.Client(ProtoPeer, only(a.Self())), false},
		"another cluster":      {stranger.Client(ProtoPeer, func(Peer) error { return nil }), false},
		"expected another":     {b.Client(ProtoPeer, only(b.Self())), false},
		"for more":             {b.Client("more/2", only(a.Self())), true},
		"for what is not":      {b.Client("more/3", only(a.Self())), false},
		"stranger, for more":   {stranger.Client("more/1", func(Peer) error { return nil }), false},
		"no one, for more":     {&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"more/1"}}, false},
		"a joiner at the door": {&tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoPeer}}, false},
		"no purpose":           {&tls.Config{InsecureSkipVerify: true}, false},
		"old TLS":              {&tls.Config{InsecureSkipVerify: true, NextProtos: []string{ProtoPeer}, MaxVersion: tls.VersionTLS12}, false},
	} {
		err := func() error {
			conn, err := (&tls.Dialer{Config: tc.cfg}).DialContext(t.Context(), "tcp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Read(make([]byte, 1))
			return err
		}()
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A witness admits nobody: who asks there is turned away.
	tok.address = serve(t, b.Server(only(a.Self())), func(*tls.Conn) { t.Error("a witness let a joiner in") })
	if _, err := join(t, t.TempDir(), tok, "c"); err == nil {
		t.Error("joined at a witness")
	}
}

// TestJoinCanceled ends with its context, at a member that never answers.
func TestJoinCanceled(t *testing.T) {
	a := initial(t)
	ctx, cancel := context.WithCancel(t.Context())
	address := serve(t, a.Server(nil), func(c *tls.Conn) {
		cancel()
		_, _ = c.Read(make([]byte, 1<<20))
		_, _ = c.Read(make([]byte, 1))
	})
	if _, err := Join(ctx, t.TempDir(), token(t, a, address), "b", "b:1", ""); !fault.Is(err, fault.Unreachable) {
		t.Error(err)
	}
}

// TestSecretsHidden prints a token in every way a log might.
func TestSecretsHidden(t *testing.T) {
	tok := token(t, initial(t), "h:1")
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("made", "token", tok)
	fmt.Fprintf(&out, "%v %s %+v %#v", tok, tok, tok, tok)
	_, err := ParseToken(tok.Encode()[:60])
	fmt.Fprint(&out, err)
	for _, secret := range []string{string(tok.secret[:]), fmt.Sprintf("%x", tok.secret), fmt.Sprint(tok.secret), tok.Encode()[:60]} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in %s", secret, out.String())
		}
	}
}

// FuzzParseToken holds that text from a person never does more than fail, and
// that what is taken is what was made.
func FuzzParseToken(f *testing.F) {
	tok := Token{address: "host:7"}
	tok.secret[3] = 9
	f.Add(tok.Encode())
	f.Add(tokenPrefix)
	f.Add(tok.Encode()[:70])
	f.Add(tok.Encode()[:70] + "\r\n  " + tok.Encode()[70:] + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if tok.Encode() != strings.Join(strings.Fields(text), "") {
			t.Fatalf("%q is taken for %q", text, tok.Encode())
		}
	})
}

// FuzzMessage feeds both ends of joining.
func FuzzMessage(f *testing.F) {
	var b bytes.Buffer
	_ = writeMessage(&b, request{Cluster: "c", Name: "a"})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, p []byte) {
		var r request
		if readMessage(bytes.NewReader(p), &r) == nil {
			var out bytes.Buffer
			var back request
			if err := errors.Join(writeMessage(&out, r), readMessage(&out, &back)); err != nil || cmp.Diff(r, back) != "" {
				t.Fatal(err, cmp.Diff(r, back))
			}
		}
		var a answer
		_ = readMessage(bytes.NewReader(p), &a)
	})
}
