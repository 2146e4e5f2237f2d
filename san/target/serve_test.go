package target

import (
	"context"
	"os"
	"os/signal"
	"testing"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// TestServe serves a RAM disk on STEADFAST_PORTAL until interrupted, for
// libiscsi's tools and load generators; it is skipped without.
func TestServe(t *testing.T) {
	address := os.Getenv("STEADFAST_PORTAL")
	if address == "" {
		t.Skip("set STEADFAST_PORTAL=host:port to serve a RAM disk")
	}
	disk := targettest.NewDisk(256 << 20)
	disk.Slow.Store(os.Getenv("STEADFAST_SLOW") != "")
	srv, err := New(Config{}, disk)
	if err != nil {
		t.Fatal(err)
	}
	access := []Access{{Initiator: AnyInitiator}}
	if secret := os.Getenv("STEADFAST_CHAP"); secret != "" {
		access[0].Auth = iscsi.Auth{In: &iscsi.Credentials{Name: "user", Secret: []byte(secret)}}
	}
	if err := srv.AddTarget(Target{Name: "iqn.2026-11.test:ram", Access: access}); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Listen(Portal{Address: address, Group: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	<-ctx.Done()
	srv.Close(context.Background())
}
