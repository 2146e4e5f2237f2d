package target

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testTarget    = "iqn.2026-11.test:t"
	testInitiator = "iqn.2026-11.test:i"
	testNames     = "InitiatorName=" + testInitiator + "\nTargetName=" + testTarget + "\n"
)

// rig is a server with a RAM disk.
type rig struct {
	t    *testing.T
	srv  *Server
	disk *targettest.Disk
	addr string
	log  *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newRig starts a server; it is closed, and everything must be gone, when the
// test ends.
func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, disk: targettest.NewDisk(8 << 20), log: new(lockedBuffer)}
	cfg.Log = slog.New(slog.NewTextHandler(r.log, nil))
	if cfg.Times.Logout == 0 {
		cfg.Times.Logout = 1 // nanosecond: nobody in these tests follows a request
	}
	cfg.stopped = true // tests tick themselves
	srv, err := New(cfg, r.disk)
	if err != nil {
		t.Fatal(err)
	}
	r.srv = srv
	if err := srv.AddTarget(Target{Name: testTarget, Alias: "test", Access: []Access{{Initiator: testInitiator}}}); err != nil {
		t.Fatal(err)
	}
	addr, err := srv.Listen(Portal{Address: "127.0.0.1:0", Group: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.addr = addr.String()
	t.Cleanup(func() {
		srv.Close(context.Background())
		if s := srv.Stats(); s.Sessions != 0 || s.HalfOpen != 0 || s.Memory != 0 || s.Waiting != 0 {
			t.Errorf("left behind: %+v", s)
		}
		if o, c := r.disk.Opened.Load(), r.disk.Closed.Load(); o != c {
			t.Errorf("%d ports opened, %d closed", o, c)
		}
		if b, e := r.disk.Begun.Load(), r.disk.Ended.Load(); b != e {
			t.Errorf("%d tasks begun, %d ended", b, e)
		}
	})
	return r
}

func (r *rig) dial() *targettest.Client {
	r.t.Helper()
	c, err := targettest.Dial(r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// login returns a client in the full feature phase, with what was negotiated.
func (r *rig) login(pairs string) (*targettest.Client, string) {
	r.t.Helper()
	c := r.dial()
	status, text, err := c.Login(testNames + pairs)
	if err != nil || status != iscsi.LoginSuccess {
		r.t.Fatalf("login: %v, %v", status, err)
	}
	return c, text
}

func (r *rig) send(c *targettest.Client, h iscsi.Header, data []byte) {
	r.t.Helper()
	if err := c.Send(h, nil, data); err != nil {
		r.t.Fatal(err)
	}
}

// expect receives a PDU of the given opcode.
func (r *rig) expect(c *targettest.Client, op iscsi.Opcode) (iscsi.Header, []byte) {
	r.t.Helper()
	h, data, err := c.Recv()
	if err != nil {
		r.t.Fatalf("waiting for %v: %v", op, err)
	}
	if h.Opcode() != op {
		r.t.Fatalf("%v instead of %v (%x %x)", h.Opcode(), op, h, data)
	}
	return h, data
}

// expectEnd waits for the connection's end.
func (r *rig) expectEnd(c *targettest.Client) {
	r.t.Helper()
	for {
		h, _, err := c.Recv()
		if err == nil {
			if op := h.Opcode(); op == iscsi.OpAsync || op == iscsi.OpReject || op == iscsi.OpNopIn {
				continue
			}
			r.t.Fatalf("%v instead of the end", h.Opcode())
		}
		if strings.Contains(err.Error(), "timeout") {
			r.t.Fatal("the connection stays")
		}
		return
	}
}

// expectStatus receives a SCSI response, and returns its sense code as
// key<<16|asc<<8|ascq.
func (r *rig) expectStatus(c *targettest.Client, itt uint32) (status uint8, sense int) {
	r.t.Helper()
	h, data := r.expect(c, iscsi.OpSCSIResponse)
	if h.InitiatorTag() != itt {
		r.t.Fatalf("answer to %d, not to %d", h.InitiatorTag(), itt)
	}
	if len(data) >= 16 {
		sense = int(data[4])<<16 | int(data[14])<<8 | int(data[15])
	}
	return h.SCSIStatus(), sense
}

// alive proves that a session still works.
func (r *rig) alive(c *targettest.Client) {
	r.t.Helper()
	h := c.Command(iscsi.FlagFinal, 0, 0)
	r.send(c, h, nil)
	if status, _ := r.expectStatus(c, h.InitiatorTag()); status != 0 {
		r.t.Fatalf("status %#x", status)
	}
}

// pattern returns n bytes that differ by seed and place.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return b
}

// session returns the server's side of a client, once its login is over.
func (r *rig) session(c *targettest.Client) *session {
	r.srv.mu.Lock()
	defer r.srv.mu.Unlock()
	return r.srv.sessions[c.TSIH]
}

var _ io.Writer = (*lockedBuffer)(nil)
