package initiator

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"steadfast/compute/initiator/initiatortest"
	"steadfast/iscsi"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// BenchmarkDisk has reads and writes at some depths, against the double: what
// it shows best is what one request costs and allocates here, as the double
// allocates for itself. go run ./test/initiator has real targets.
func BenchmarkDisk(b *testing.B) {
	p := iscsi.DefaultParams()
	p.InitialR2T, p.FirstBurstLength, p.MaxBurstLength, p.MaxRecvLength = false, 256<<10, 1<<20, 256<<10
	target, err := initiatortest.New(initiatortest.Options{Size: 16 << 20, Params: p})
	if err != nil {
		b.Fatal(err)
	}
	defer target.Close()
	d, err := Open(b.Context(), config(target))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for _, w := range []struct {
		size, depth int
		write       bool
	}{{4 << 10, 1, false}, {4 << 10, 1, true}, {4 << 10, 32, false}, {4 << 10, 32, true}, {32 << 10, 8, false}, {32 << 10, 8, true}} {
		b.Run(fmt.Sprintf("%dk-QD%d-write=%v", w.size>>10, w.depth, w.write), func(b *testing.B) {
			b.SetBytes(int64(w.size))
			b.ReportAllocs()
			var users sync.WaitGroup
			for u := range w.depth {
				users.Go(func() {
					buf := make([]byte, w.size)
					for i := u; i < b.N; i += w.depth {
						off := int64(u) * int64(w.size)
						var err error
						if w.write {
							err = d.WriteAt(buf, off, 0)
						} else {
							err = d.ReadAt(buf, off)
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			users.Wait()
		})
	}
}
