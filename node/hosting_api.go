package node

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/host"
	"steadfast/compute/initiator"
	"steadfast/fault"
	"steadfast/scsi"
)

// hostedStatus tells how a machine does that this node runs. Its process may take until ctx
// ends to say. Fails with fault.NotFound when this node does not run it.
func (n *Node) hostedStatus(ctx context.Context, machine string) (*steadfastv1.MachineStatus, error) {
	h, err := n.hosted()
	if err != nil {
		return nil, err
	}
	m, err := h.Machine(ctx, machine)
	if err != nil {
		return nil, err
	}
	return describeHosted(m, time.Now()), nil
}

// describeHosted is a machine's status as the API has it.
func describeHosted(m host.Machine, now time.Time) *steadfastv1.MachineStatus {
	out := &steadfastv1.MachineStatus{
		Phase: string(m.Phase), Step: m.Step, Since: timestamppb.New(m.Since), Pid: int32(m.PID),
		Instructions: m.Status.Count, CpuNanoseconds: int64(m.CPU),
		GuestRestarts: int32(m.Restarts), Resets: int32(m.Resets), Full: m.Full,
	}
	if m.Silent != nil && out.Step == "" {
		out.Step = "its process does not answer: " + m.Silent.Error()
	}
	if p := m.Pair; p != nil {
		out.Pair = &steadfastv1.PairStatus{
			Side: "primary", State: p.State, Protected: p.Protected, LagNanoseconds: p.LagNS, LagBytes: p.LagBytes,
			LogBytes: p.LogBytes, LogBytesPerSecond: int64(p.LogBytesPerSecond), CopyBytes: p.CopyBytes, PauseNanoseconds: p.PauseNS,
			CpuNanoseconds: int64(m.CPU), MemoryBytes: m.Resident,
		}
		if p.Secondary {
			out.Pair.Side = "secondary"
		}
	}
	for _, d := range m.Disks {
		v := &steadfastv1.MachineVolumeStatus{Disk: d.Name, Volume: d.Volume, Paths: describePaths(d.State), Retries: uint64(max(d.State.Retries, 0))}
		if d.State.Waiting > 0 {
			v.AwaySince = timestamppb.New(now.Add(-d.State.Waiting))
		}
		out.Volumes = append(out.Volumes, v)
	}
	return out
}

// describePaths tells of the ways to a volume: those that are up, and why others are not.
func describePaths(s initiator.State) (list []string) {
	up := map[string]bool{}
	for _, p := range s.Paths {
		if !p.Up || p.Barred {
			continue
		}
		word := "standby"
		if p.Access == scsi.ActiveOptimized || p.Access == scsi.ActiveNonOptimized {
			word = "active"
		}
		up[p.Portal] = true
		list = append(list, word+" "+cmp.Or(p.Portal, "(connects)"))
	}
	for _, portal := range slices.Sorted(maps.Keys(s.Portals)) {
		if !up[portal] {
			list = append(list, "down "+portal+": "+s.Portals[portal].Error())
		}
	}
	if len(list) == 0 {
		list = append(list, "down: not connected yet")
	}
	return list
}

// hostedWatch gives send what the guest of a machine that this node runs writes on its serial
// port, after the last lines of before, until the machine has ended (nil) or ctx has. send
// is not called any more when it has returned. Fails with fault.NotFound when this node does
// not run it, fault.Limit when send was too slow, and as send does.
func (n *Node) hostedWatch(ctx context.Context, machine string, send func([]byte) error) error {
	h, err := n.hosted()
	if err != nil {
		return err
	}
	w := &watcher{send: send, closed: make(chan struct{})}
	leave, err := h.Attach(machine, w)
	if err != nil {
		return err
	}
	select {
	case <-w.closed:
	case <-ctx.Done():
	}
	leave() // it returns when nothing is under way any more
	switch {
	case w.late:
		return fault.New(fault.Limit, "the machine %q writes faster than its console was read; connect again", machine)
	case w.failed != nil:
		return w.failed
	case ctx.Err() != nil:
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "the machine's console")
	}
	return nil
}

// watcher is who watches a console. It is closed while something is written only for being
// too far behind.
type watcher struct {
	send    func([]byte) error
	writing atomic.Bool
	failed  error
	late    bool
	closed  chan struct{}
}

// Write implements io.Writer.
func (w *watcher) Write(p []byte) (int, error) {
	w.writing.Store(true)
	defer w.writing.Store(false)
	if w.failed == nil {
		w.failed = w.send(p)
	}
	if w.failed != nil {
		return 0, w.failed
	}
	return len(p), nil
}

// Close implements io.Closer.
func (w *watcher) Close() error {
	w.late = w.writing.Load()
	close(w.closed)
	return nil
}

// hostedType types on the serial port of a machine that this node runs. It waits for the
// guest to take that. Fails with fault.NotFound when this node does not run it.
func (n *Node) hostedType(machine string, data []byte) error {
	h, err := n.hosted()
	if err != nil {
		return err
	}
	return h.Type(machine, data)
}
