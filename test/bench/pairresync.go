package main

import (
	"errors"
	"fmt"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
)

// outage has node b die, and node a go on and write the resync volume whole, so
// that b lacks it. What is written meanwhile is not measured.
func (p *pairBench) outage() error {
	if err := p.world.kill(nodeB); err != nil {
		return err
	}
	_, err := p.world.await(p.ctx, nodeA, mirrorResync.group, "served by one node", time.Minute, func(g *steadfastv1.Group) bool {
		return g.State == "serving" && len(g.InSync) == 1
	})
	if err != nil {
		return err
	}
	fmt.Printf("fill  pair/%s, node b is away\n", mirrorResync.name)
	return p.world.hurried(func() error {
		_, err := p.on(mirrorResync, load{name: fillName, write: true, bs: 256 << 10, qd: 8})
		return err
	})
}

// resyncs tells whether a resync of the large volume is under way.
func resyncs(g *steadfastv1.Group) bool {
	return g.GetSync().GetState() == "resyncing" && g.Sync.BytesLeft > resyncVolumeBytes/4
}

// comeBack starts node b again and waits until it is being resynced. It returns
// how many bytes were to be copied when that was first seen.
func (p *pairBench) comeBack() (bytes int64, err error) {
	if err := p.world.start(p.ctx, nodeB); err != nil {
		return 0, err
	}
	g, err := p.world.await(p.ctx, nodeA, mirrorResync.group, "resyncing", time.Minute, resyncs)
	if err != nil {
		return 0, err
	}
	return g.Sync.BytesLeft, nil
}

// recover waits for the end of a resync, and for the other group to go back to
// where it belongs.
func (p *pairBench) recover() error {
	for group, owner := range pairGroups {
		g, err := p.world.await(p.ctx, owner, group, "in sync", 5*time.Minute, func(g *steadfastv1.Group) bool {
			return g.State == "serving" && len(g.InSync) == 2
		})
		if err != nil {
			return err
		}
		if g.Owner != memberName(owner) {
			if err := p.world.patiently(p.ctx, nodeA, "group", "move", group); err != nil {
				return err
			}
		}
	}
	return p.world.whole(p.ctx)
}

// resyncIdle measures how fast a node that was away gets what it lacks, from when
// the resync is seen until the node is in sync, while no client does anything.
func (p *pairBench) resyncIdle(name string) error {
	var rates, took []float64
	var busy []result
	for range max(1, p.rounds/2) { // each takes half a minute
		if err := p.outage(); err != nil {
			return err
		}
		started := time.Now()
		bytes, err := p.comeBack()
		if err != nil {
			return err
		}
		seen := time.Now()
		used, err := p.meter()
		if err != nil {
			return err
		}
		_, err = p.world.await(p.ctx, nodeA, mirrorResync.group, "in sync", 5*time.Minute, func(g *steadfastv1.Group) bool { return len(g.InSync) == 2 })
		if err != nil {
			return err
		}
		rates = append(rates, float64(bytes)/time.Since(seen).Seconds())
		took = append(took, time.Since(started).Seconds())
		_, others, err := used(0)
		if err != nil {
			return err
		}
		busy = append(busy, result{Others: others})
		if err := p.recover(); err != nil {
			return err
		}
	}
	p.atLeast(name+"/MBps", medianOf(rates)/1e6, slowerLimit/1e6, "slower-of-link-and-drive", 0.8)
	tell(name+"/start-to-in-sync-s", medianOf(took), resyncVolumeBytes/slowerLimit, "bytes-at-the-limit")
	note(name, busy)
	return nil
}

// resyncP99 compares what clients feel while a node is resynced with a pair in
// sync. Half of the rounds in sync come before, half after.
func (p *pairBench) resyncP99(name string) error {
	var with, without []result
	var copied []float64
	quietly := func(rounds int) error {
		for range rounds {
			r, err := p.on(mirrorDurable, pairMixed)
			if err != nil {
				return err
			}
			without = append(without, r)
		}
		return nil
	}
	if err := quietly((p.rounds + 1) / 2); err != nil {
		return err
	}
	if err := p.outage(); err != nil {
		return err
	}
	for round := range p.rounds {
		if round > 0 { // most is still to be copied: it only has to come again
			if err := p.world.kill(nodeB); err != nil {
				return err
			}
		}
		r, rate, err := p.underResync()
		if err != nil {
			return err
		}
		with, copied = append(with, r), append(copied, rate)
	}
	if err := errors.Join(p.recover(), quietly(p.rounds/2)); err != nil {
		return err
	}
	p99 := func(r result) float64 { return r.P99 }
	p50 := func(r result) float64 { return r.P50 }
	speed := func(r result) float64 { return r.IOPS }
	p.atMost(name+"/p99-us", median(with, p99), median(without, p99), "in-sync", 2)
	tell(name+"/p50-us", median(with, p50), median(without, p50), "in-sync")
	tell(name+"/iops", median(with, speed), median(without, speed), "in-sync")
	// A resync that stands still troubles nobody: it is seen here.
	tell(name+"/resynced-MBps", medianOf(copied)/1e6, slowerLimit/1e6, "slower-of-link-and-drive")
	note(name, with, without)
	return nil
}

// underResync measures once while a resync that has come to its speed is under way,
// and also returns what it copied meanwhile in bytes a second.
func (p *pairBench) underResync() (r result, copied float64, err error) {
	bytes, err := p.comeBack()
	if err != nil {
		return r, 0, err
	}
	before, err := p.world.await(p.ctx, nodeA, mirrorResync.group, "resynced for a while", time.Minute, func(g *steadfastv1.Group) bool {
		return g.GetSync().GetBytesLeft() < bytes-resyncVolumeBytes/32
	})
	if err != nil {
		return r, 0, err
	}
	began := time.Now()
	if r, err = p.on(mirrorDurable, pairMixed); err != nil {
		return r, 0, err
	}
	after, err := p.world.show(p.ctx, nodeA, mirrorResync.group)
	if err != nil {
		return r, 0, err
	}
	if after.GetSync().GetState() != "resyncing" {
		return r, 0, fmt.Errorf("the resync of %d bytes ended while clients were measured", bytes)
	}
	return r, float64(before.Sync.BytesLeft-after.Sync.BytesLeft) / time.Since(began).Seconds(), nil
}
