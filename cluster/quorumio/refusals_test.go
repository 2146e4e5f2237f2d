package quorumio

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"steadfast/fault"
)

// TestRefusals: who is refused again and again is told of at once, and then once a minute with how
// often that was; another address and another reason are their own. However many there
// are, what is remembered is bounded, and nothing is lost from the count.
func TestRefusals(t *testing.T) {
	var text bytes.Buffer
	r := &refusals{log: slog.New(slog.NewTextHandler(&text, nil))}
	lines := func() (list []string) {
		for line := range strings.Lines(text.String()) {
			_, line, _ = strings.Cut(line, "msg=")
			list = append(list, strings.TrimSpace(line))
		}
		text.Reset()
		return list
	}
	said := func(want ...string) {
		t.Helper()
		if got := lines(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("said %q, want %q", got, want)
		}
	}
	start := time.Unix(1000, 0)
	at := func(n byte, port int) net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, n), Port: port} }
	bad := fault.New(fault.Denied, "bad certificate")
	for i := range 100 {
		r.tell(start.Add(time.Duration(i)*100*time.Millisecond), "a stranger", at(1, 40000+i), bad)
	}
	said(`"a connection was refused" what="a stranger" from=192.0.2.1 err="bad certificate"`)
	r.tell(start.Add(time.Second), "a stranger", at(2, 1), bad)
	r.tell(start.Add(time.Second), "a stranger", at(1, 1), fault.New(fault.Denied, "EOF"))
	r.tell(start.Add(time.Second), "a joiner", at(1, 1), nil)
	said(`"a connection was refused" what="a stranger" from=192.0.2.2 err="bad certificate"`, `"a connection was refused" what="a stranger" from=192.0.2.1 err=EOF`, `"a connection was refused" what="a joiner" from=192.0.2.1`)
	r.tell(start.Add(refusalEvery), "a stranger", at(1, 2), bad)
	said(`"a connection was refused" what="a stranger" from=192.0.2.1 err="bad certificate" times=100`)
	r.tell(start.Add(refusalEvery+time.Second), "a stranger", at(1, 3), bad)
	said()

	later := start.Add(time.Hour)
	told, times := 0, 0
	for i := range 4 * refusalsMax {
		r.tell(later, "a stranger", at(byte(i%200), 1), fmt.Errorf("reason %d", i))
	}
	if len(r.told) > refusalsMax+1 {
		t.Errorf("%d are remembered", len(r.told))
	}
	r.tell(later.Add(refusalEvery-1), "a stranger", at(201, 1), bad)
	for _, line := range lines() {
		told++
		if strings.Contains(line, "times=") {
			times++
		}
	}
	if told != refusalsMax+1 || times != 0 {
		t.Errorf("%d were told at once, %d of them with a count", told, times)
	}
	r.tell(later.Add(refusalEvery), "a stranger", at(201, 1), bad)
	if last := lines(); len(last) != 1 || last[0] != `"a connection was refused" what="a stranger" from=192.0.2.201 err="bad certificate"` {
		t.Errorf("when the others were quiet for a minute: %q", last)
	}
}
