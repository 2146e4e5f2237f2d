package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// TestWeb: a server that has every page passes; one wrong byte, and one answer that never
// comes, are noticed.
func TestWeb(t *testing.T) {
	pages := map[int][]byte{}
	for _, n := range nginxPages {
		pages[n] = page(n)
	}
	for name, tc := range map[string]struct {
		nth  int64 // the request that is not answered well, 0 for none
		hurt func(w http.ResponseWriter, r *http.Request)
	}{
		"good":       {},
		"wrong byte": {20, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("2\n")) }},
		"no answer":  {20, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1) == tc.nth {
					tc.hurt(w, r)
					return
				}
				n, err := strconv.Atoi(path.Base(r.URL.Path))
				if err != nil {
					t.Error(err)
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(pages[n]))
			}))
			defer s.Close()
			// The good ones may take long: only the one that is never answered meets its end.
			w := &web{base: s.URL + "/", pages: pages, patience: time.Minute}
			if name == "no answer" {
				w.patience = 2 * time.Second
			}
			// The time is over when only some of the requests are made: every client makes one.
			if err := w.use(t.Context(), 100*time.Millisecond); (err == nil) != (tc.nth == 0) {
				t.Error(err)
			}
			if tc.nth == 0 && w.requests.Load() < nginxClients {
				t.Errorf("%d requests", w.requests.Load())
			}
		})
	}
}

// TestStressed: each stressor that was named has passed, or is skipped for a reason that is
// told; else it is an error.
func TestStressed(t *testing.T) {
	const (
		because = "stress-ng: info:  [7] vm stressor will be skipped, it is not implemented on this system: riscv64\n"
		summary = "stress-ng: info:  [7] skipped: 1: vm (1)\nstress-ng: info:  [7] passed: 2: cpu (1) vm-rw (1)\nstress-ng: info:  [7] failed: 0\n"
	)
	skips, err := stressed(because+summary, []string{"cpu", "vm", "vm-rw"})
	if err != nil || len(skips) != 1 || skips["vm"] != "vm stressor will be skipped, it is not implemented on this system: riscv64" {
		t.Errorf("%q, %v", skips, err)
	}
	for what, tc := range map[string]struct{ said, name string }{
		"one that was not run":      {because + summary, "zlib"},
		"a skip without a reason":   {summary, "vm"},
		"nothing passed":            {because + "stress-ng: info:  [7] passed: 0\n", "vm"},
		"it says of another why":    {"stress-ng: info:  [7] vm-rw: no memory, skipping stressor\n" + summary, "vm"},
		"it was only to be started": {"stress-ng: info:  [7] dispatching hogs: 1 vm\n" + summary, "vm"},
	} {
		if skips, err := stressed(tc.said, []string{tc.name}); err == nil {
			t.Errorf("%s: %q", what, skips)
		}
	}
}
