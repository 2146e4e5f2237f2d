package mirrorio

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/san/mirror"
)

// secret returns a configuration of TLS for both ends of a link.
func secret(t testing.TB) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"peer"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: roots, ServerName: "peer", DynamicRecordSizingDisabled: true}
}

// TestTakeoverSecured is TestTakeover over TLS.
func TestTakeoverSecured(t *testing.T) {
	takeovers(t, newPairBy(t, &memory{}, &memory{}, secret(t)))
}

// TestJoin holds that packets that are joined are the same bytes in the same order.
func TestJoin(t *testing.T) {
	var list net.Buffers
	var want []byte
	for i, n := range []int{10, 100, smallMax, smallMax + 1, 5, 100 << 10, 7, 8, 9} {
		b := bytes.Repeat([]byte{byte(i)}, n)
		list, want = append(list, b), append(want, b...)
	}
	out := join(list)
	if len(out) != 5 || !bytes.Equal(bytes.Join(out, nil), want) {
		t.Errorf("%d buffers", len(out))
	}
}

// TestTune holds that the socket below TLS is set.
func TestTune(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tune(tls.Client(c, &tls.Config{ServerName: "peer"}))
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || ms != 5000 {
			t.Errorf("TCP_USER_TIMEOUT is %d ms, %v", ms, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStalledPeer holds that a peer which takes nothing ends the connection.
func TestStalledPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this waits for five seconds")
	}
	p := newPair(t)
	near, far := net.Pipe() // nobody reads at its other end
	defer far.Close()
	ended := make(chan error)
	began := time.Now()
	go func() { ended <- p.groups["a"].Attach(near, p.me("b")) }()
	select {
	case <-ended:
	case <-time.After(2 * stallMax):
		t.Fatal("it goes on")
	}
	if took := time.Since(began); took < stallMax/2 {
		t.Errorf("it ended after %v", took)
	}
}

// TestReplaceStalledLink holds that the core does not wait for a peer that takes
// nothing, when another connection takes the place of its own.
func TestReplaceStalledLink(t *testing.T) {
	p := newPair(t)
	near, far := net.Pipe()
	defer far.Close()
	cfg := secret(t)
	shaken := make(chan error)
	go func() { shaken <- tls.Server(far, cfg).Handshake() }() // and reads no more
	conn := tls.Client(near, cfg)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	p.links.Go(func() { _ = p.groups["a"].Attach(conn, p.me("b")) })
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	p.connect()
	p.await("the new link is there", func() bool { return p.groups["a"].Status().Phase == mirror.Joined })
	if took := time.Since(began); took > time.Second {
		t.Errorf("the core waited for %v", took)
	}
}
