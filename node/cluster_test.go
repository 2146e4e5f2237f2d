package node

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/config"
)

// TestInitAgain fails to make a cluster, for its address is taken, and makes it at the
// next try: the first has left nothing, and touched nothing that was there.
func TestInitAgain(t *testing.T) {
	for _, there := range []bool{false, true} {
		dir, err := os.MkdirTemp("", "sfi")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		c := config.Default()
		c.DataDir, c.Socket, c.Drain = filepath.Join(dir, "data"), filepath.Join(dir, "s"), config.Duration(time.Second)
		c.Cluster.HandedAliases = true // nothing is done to the network of who tests
		c.Portals = nil
		n, err := Start(t.Context(), Options{Config: c, Version: "test", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(n.clusterDir(), "notes")
		if there {
			if err := os.Mkdir(n.clusterDir(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		req := &steadfastv1.InitClusterRequest{Name: "a", Address: l.Addr().String()}
		if _, err := (clusterService{n}).InitCluster(t.Context(), req); !fault.Is(err, fault.Busy) {
			t.Errorf("an address that is taken: %v", err)
		}
		left, err := filesIn(n.clusterDir())
		if err != nil || (left != nil) != there || len(left) > 0 && !left["notes"] || len(left) > 1 {
			t.Errorf("left: %v, %v", left, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := (clusterService{n}).InitCluster(t.Context(), req); err != nil {
			t.Errorf("the next try: %v", err)
		}
		if _, err := (clusterService{n}).InitCluster(t.Context(), req); !fault.Is(err, fault.Exists) {
			t.Errorf("and one too many: %v", err)
		}
		if left, err := filesIn(n.clusterDir()); err != nil || len(left) < 4 {
			t.Errorf("one too many has left %v, %v", left, err)
		}
		if b, err := os.ReadFile(file); there && (err != nil || string(b) != "kept") {
			t.Errorf("what was there is %q, %v", b, err)
		}
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestAddressTaken: a member whose address another process has when it begins takes part as
// soon as that has ended.
func TestAddressTaken(t *testing.T) {
	n := startStorage(t)
	address := freeAddress(t)
	if _, err := (clusterService{n}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "a", Address: address}); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Start(t.Context(), Options{Config: n.cfg, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err, other.Close())
	}
	t.Cleanup(func() {
		if err := again.Stop(); err != nil {
			t.Error(err)
		}
	})
	if _, err := again.inCluster(); err == nil {
		t.Error("it takes part without an address")
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it takes part", func() bool { _, err := again.inCluster(); return err == nil })
}

// TestTryOnce: a node that has become a member by another way does not open its membership a
// second time, and one that has left its cluster has nothing left to try.
func TestTryOnce(t *testing.T) {
	n := startStorage(t)
	if n.tryOnce() {
		t.Error("in no cluster, it tries again")
	}
	if _, err := (clusterService{n}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "a", Address: freeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	c := n.cluster
	if n.tryOnce() || n.cluster != c {
		t.Error("a member tries to be one")
	}
	if _, err := n.inCluster(); err != nil {
		t.Error(err)
	}
}
