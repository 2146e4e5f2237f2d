package node_test

import (
	"testing"

	"go.uber.org/goleak"

	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/node/handed"
)

// TestAdmitAnyone: what opens a volume to anyone is there in a node for a trial only,
// and only as long as nobody but loopback reaches it.
func TestAdmitAnyone(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, c := range map[string]struct {
		trial  bool
		portal config.Address
		want   fault.Kind
	}{
		"a node as usual": {false, "127.0.0.1:0", fault.Unreachable},
		"for a trial":     {true, "127.0.0.1:0", fault.NotFound}, // it looks for the volume
		"off loopback":    {true, "0.0.0.0:0", fault.Denied},
		"on every one":    {true, ":0", fault.Denied},
	} {
		cfg := settings(t)
		cfg.Cluster.HandedAliases = c.trial
		cfg.Portals[0].Address = c.portal
		n := start(t, cfg, nil)
		if _, _, err := handed.Admit(t.Context(), handed.Socket(cfg.DataDir), "none"); !fault.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", name, err, c.want)
		}
		stop(t, n)
	}
}
