package mirrorio

import (
	"sync"
	"sync/atomic"
	"testing"

	"steadfast/san/mirror"
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

// BenchmarkRead is what a read costs beside the store's own: past the core, as
// TryReadAt, and through the core.
func BenchmarkRead(b *testing.B) {
	p := newPair(b)
	v := p.volume("a")
	buf := make([]byte, BlockSize)
	p.await("b has promised", func() bool { return v.TryReadAt(buf, 0) })
	op, err := v.op(mirror.Read, 0, BlockSize)
	if err != nil {
		b.Fatal(err)
	}
	for name, read := range map[string]func() error{
		"store": func() error { return p.disks["a"].(*memory).Read(0, buf, 0) },
		"past":  func() error { return v.ReadAt(buf, 0) },
		"try": func() error {
			if !v.TryReadAt(buf, 0) {
				return errMoved
			}
			return nil
		},
		"core": func() error { return v.group.begin(op, &request{read: buf}) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
