package mirrorio

import (
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkWrite is what the mirror itself costs: stores in memory, a loopback
// connection.
func BenchmarkWrite(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "qd1", 32: "qd32"}[depth], func(b *testing.B) {
			p := newPair(b)
			v := p.volume("a")
			var next atomic.Int64
			var workers sync.WaitGroup
			b.ResetTimer()
			for range depth {
				workers.Go(func() {
					buf := make([]byte, BlockSize)
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						if err := v.WriteAt(buf, n%volumeBlocks*BlockSize, 0); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			workers.Wait()
		})
	}
}
