package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// protoAPI is the ALPN by which one node passes a call of the API to another.
const protoAPI = "steadfast-api/1"

// forwardedHeader marks a call that was passed on: it goes no further.
const forwardedHeader = "Steadfast-Forwarded"

// elsewhereError is what a handler returns for a call that another node must
// answer. The call is passed on, and the caller does not see it.
type elsewhereError struct{ node quorum.Member }

// Error implements error.
func (e elsewhereError) Error() string {
	return "node " + string(e.node) + " must answer this; call it there"
}

// revisionHeader tells, with the answer to a call that was passed on, the revision
// of the inventory that it is about: the caller's next call may be answered by this
// node, which must know of it then.
const revisionHeader = "Steadfast-Inventory"

// catchUpTime bounds how long an answer waits for this node to know as much as the
// one that gave it.
const catchUpTime = 2 * time.Second

// routeKey is the context's key of a *route.
type routeKey struct{}

// route is where a call is to go; a handler enters it.
type route struct{ to quorum.Member }

// elsewhere has the present call passed on to another node. The error is what
// the handler returns.
func elsewhere(ctx context.Context, node quorum.Member) error {
	if r, ok := ctx.Value(routeKey{}).(*route); ok {
		r.to = node
		return elsewhereError{node}
	}
	return fault.New(fault.Fenced, "node %s must answer this, and it was passed on once already: the group is just moving; try again", node)
}

// streaming are the calls that answer with a stream: they are not passed on.
var streaming = []string{
	steadfastv1connect.NodeServiceWatchEventsProcedure, steadfastv1connect.SnapshotServiceListChangesProcedure,
	steadfastv1connect.SiteServiceWatchSiteEventsProcedure, steadfastv1connect.SiteServiceCollectSupportProcedure,
	steadfastv1connect.GroupServiceVerifyGroupProcedure,
	// These pass on by themselves what they stream.
	steadfastv1connect.MachineServiceWriteMachineProcedure, steadfastv1connect.MachineServiceReadMachineProcedure,
	steadfastv1connect.MachineServiceWatchConsoleProcedure,
}

// passedKey is the context's key of whether another member has passed the call on.
type passedKey struct{}

// passedOn tells whether another member has passed the present call on, or asks itself.
func passedOn(ctx context.Context) bool { return ctx.Value(passedKey{}) != nil }

// forwarding passes calls on that another node must answer.
func (n *Node) forwarding(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(forwardedHeader) != "" {
			r = r.WithContext(context.WithValue(r.Context(), passedKey{}, true))
		}
		stream := r.Method != http.MethodPost
		for _, p := range streaming {
			stream = stream || strings.HasSuffix(r.URL.Path, p)
		}
		if stream {
			next.ServeHTTP(w, r)
			return
		}
		if r.Header.Get(forwardedHeader) != "" {
			// It is who asked there that asks, and not who passes it on.
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, nil))
			kept := &keptAnswer{header: http.Header{}, status: http.StatusOK}
			next.ServeHTTP(kept, r)
			if c, err := n.inCluster(); err == nil {
				kept.header.Set(revisionHeader, strconv.FormatUint(uint64(c.member.State().Inventory.Revision), 10))
			}
			kept.copyTo(w)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestBytesMax+4096))
		if err != nil {
			http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
			return
		}
		to := &route{}
		again := r.Clone(context.WithValue(r.Context(), routeKey{}, to))
		again.Body = io.NopCloser(bytes.NewReader(body))
		kept := &keptAnswer{header: http.Header{}, status: http.StatusOK}
		next.ServeHTTP(kept, again)
		if to.to == "" {
			kept.copyTo(w)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		n.passOn(w, r, to.to, kept)
	})
}

// passOn has another node answer. When it cannot be reached the caller gets the
// answer of this one.
func (n *Node) passOn(w http.ResponseWriter, r *http.Request, to quorum.Member, own *keptAnswer) {
	c, err := n.inCluster()
	if err != nil {
		own.copyTo(w)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: string(to)})
			// Here, where the caller's "Connection" cannot name it to be left out.
			p.Out.Header.Set(forwardedHeader, "1")
		},
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return c.member.Dial(ctx, to, protoAPI)
			},
		},
		ModifyResponse: func(resp *http.Response) error {
			revision, err := strconv.ParseUint(resp.Header.Get(revisionHeader), 10, 64)
			if err != nil {
				return nil // of an older program
			}
			ctx, cancel := context.WithTimeout(r.Context(), catchUpTime)
			defer cancel()
			// It is an answer also when this takes longer.
			_ = n.waitFor(ctx, func() bool { return uint64(c.member.State().Inventory.Revision) >= revision })
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			n.log.Warn("a call could not be passed on", "to", to, "error", err)
			own.copyTo(w)
		},
	}
	proxy.ServeHTTP(w, r)
}

// keptAnswer is an answer that is not sent yet.
type keptAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (k *keptAnswer) Header() http.Header { return k.header }

// WriteHeader implements http.ResponseWriter.
func (k *keptAnswer) WriteHeader(status int) { k.status = status }

// Write implements http.ResponseWriter.
func (k *keptAnswer) Write(p []byte) (int, error) { return k.body.Write(p) }

// Flush implements http.Flusher: there is nobody to flush to yet.
func (k *keptAnswer) Flush() {}

func (k *keptAnswer) copyTo(w http.ResponseWriter) {
	for name, values := range k.header {
		w.Header()[name] = values
	}
	w.WriteHeader(k.status)
	// Who asked has gone when this fails.
	_, _ = w.Write(k.body.Bytes())
}

// apiListener gives connections of other nodes to the API's server. The
// connection is the server's until it closes it.
type apiListener struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func newAPIListener() *apiListener {
	return &apiListener{conns: make(chan net.Conn), ended: make(chan struct{})}
}

// serve has a connection answered, and returns when it was closed. from is who is at its
// other end.
func (l *apiListener) serve(conn *tls.Conn, from identity.Peer) {
	c := &apiConn{Conn: conn, from: from, over: make(chan struct{})}
	select {
	case l.conns <- c:
		select {
		case <-c.over:
		case <-l.ended:
		}
	case <-l.ended:
	}
}

// Accept implements net.Listener.
func (l *apiListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, errors.Join(net.ErrClosed, http.ErrServerClosed)
	}
}

// Close implements net.Listener.
func (l *apiListener) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

// Addr implements net.Listener.
func (l *apiListener) Addr() net.Addr { return &net.UnixAddr{Name: protoAPI, Net: "unix"} }

// apiConn tells when it is closed.
type apiConn struct {
	net.Conn
	from identity.Peer
	over chan struct{}
	once sync.Once
}

// callerKey is the context's key of the identity.Peer that calls.
type callerKey struct{}

// connContext has the handlers of a connection know which member is at its other end.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(*apiConn); ok {
		return context.WithValue(ctx, callerKey{}, c.from)
	}
	return ctx
}

// callerOf returns the member that a call came from itself: by no socket of this node's,
// and passed on by nobody.
func callerOf(ctx context.Context) (identity.Peer, bool) {
	from, ok := ctx.Value(callerKey{}).(identity.Peer)
	return from, ok
}

// Close implements net.Conn.
func (c *apiConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.over) })
	return err
}
