package main

import (
	"context"
	"fmt"
	"os"
)

// byHand types the first part in three terminals. They are in a box without root's
// privileges on any network but its own loopback.
func (r *run) byHand(ctx context.Context) error {
	if _, err := os.Stat(r.bin); err != nil {
		return fmt.Errorf("%w: make build", err)
	}
	b, err := newBox(r.dir, "hand", "")
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.copy(r.bin, "/usr/local/bin/steadfast", "0755"); err != nil {
		return err
	}
	at := map[string]*terminal{}
	for _, name := range []string{"a", "b", "w"} {
		t, err := b.terminal()
		if err != nil {
			return err
		}
		defer t.close()
		at[name] = t
	}
	if err := r.follow(ctx, byHand, at); err != nil {
		r.tellLogs(b, "/root/walk/*.log")
		return err
	}
	return nil
}

// tellLogs shows how a box's logs end.
func (r *run) tellLogs(b *box, pattern string) {
	out, err := b.command("bash", "-c", "tail -n 4 "+pattern)
	fmt.Printf("logs in box %s (%v):\n%s\n", b.name, err, out)
}
