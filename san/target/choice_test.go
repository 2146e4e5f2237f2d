package target

import (
	"testing"
	"time"
)

// TestChoice holds that the faster way gets nearly all commands, also when the
// two change places.
func TestChoice(t *testing.T) {
	var c choice
	run := func(reader, worker time.Duration) (byWorker int) {
		for range 10000 {
			cycle := reader
			if c.byWorker() {
				cycle = worker
				byWorker++
			}
			c.note(cycle)
		}
		return byWorker
	}
	if n := run(100*time.Microsecond, 200*time.Microsecond); n > 600 {
		t.Errorf("%d of 10000 commands went to workers, which take twice as long", n)
	}
	// It has to notice that the machine is another now.
	if n := run(200*time.Microsecond, 100*time.Microsecond); n < 7000 {
		t.Errorf("only %d of 10000 commands went to workers, which take half as long", n)
	}
	if n := run(100*time.Microsecond, 100*time.Microsecond); n < 9000 {
		t.Errorf("%d of 10000 commands stayed with workers, though nothing is gained by leaving", n)
	}
}
