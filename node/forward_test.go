package node

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"steadfast/cluster/quorum"
)

// TestPassedOnIsMarked: who is passed a call knows that it was, whatever the caller says of its
// headers: what is asked for others is not the member's own question.
func TestPassedOnIsMarked(t *testing.T) {
	a, b := startPair(t)
	eventually(t, "the nodes hear one another", func() bool { return a.cluster.hears("b") && b.cluster.hears("a") })
	// A call that b cannot answer either shows what reached it: it goes no further.
	for _, header := range []string{"", forwardedHeader, "Keep-Alive, " + forwardedHeader} {
		r := httptest.NewRequestWithContext(within(t), http.MethodPost, "/steadfast.v1.MachineService/GetAccess", strings.NewReader("{}"))
		r.Header.Set("Content-Type", "application/json")
		if header != "" {
			r.Header.Set("Connection", header)
		}
		w := httptest.NewRecorder()
		a.passOn(w, r, quorum.Member("b"), &keptAnswer{header: http.Header{}, status: http.StatusTeapot})
		// b would say of a itself that it is no host; of others, that only a host asks.
		if body := w.Body.String(); w.Code == http.StatusTeapot || !strings.Contains(body, "only a host asks this") {
			t.Errorf("Connection: %q: %d, %s", header, w.Code, body)
		}
	}
}
