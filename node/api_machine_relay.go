package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/apierror"
)

// statusTime bounds the question to a host how a machine does.
const statusTime = 2 * time.Second

// atStorage has the present call answered by a storage node, if this is none. Fails with
// fault.Unreachable when none is heard of; else the error is the handler's.
func (n *Node) atStorage(ctx context.Context) error {
	if n.cfg.Cluster.Stores() {
		return nil
	}
	to, err := n.storageNode()
	if err != nil {
		return err
	}
	return elsewhere(ctx, to)
}

// atStorageOf is atStorage for what only who serves a machine's group can answer: a call is passed
// on once.
func (n *Node) atStorageOf(ctx context.Context, machine string) error {
	if n.cfg.Cluster.Stores() {
		return nil
	}
	v, m, err := n.findMachine(machine)
	if err != nil {
		return n.atStorage(ctx) // which may know more
	}
	c, err := n.inCluster()
	if err != nil {
		return err
	}
	if d := v.Datastores[m.Datastore]; d != nil {
		if owner := c.member.State().Group[d.Group]; owner != nil && c.hears(owner.Owner.Member) {
			return elsewhere(ctx, owner.Owner.Member)
		}
	}
	return n.atStorage(ctx)
}

// storageNode returns a storage node that is heard of. Fails with fault.Unreachable.
func (n *Node) storageNode() (quorum.Member, error) {
	c, err := n.inCluster()
	if err != nil {
		return "", err
	}
	words := c.member.Reachable()
	for _, r := range c.member.State().Roll.Sorted() {
		if word, ok := words[r.Name]; r.Role == quorum.RoleNode && ok && word.Age < heardLately {
			return r.Name, nil
		}
	}
	return "", fault.New(fault.Unreachable, "no storage node is heard of from here; see \"steadfast cluster show\", and give the command on one of them")
}

// machinesAt returns a client of another member's MachineService. What it is asked is
// not passed on further.
func (c *cluster) machinesAt(to quorum.Member) steadfastv1connect.MachineServiceClient {
	return steadfastv1connect.NewMachineServiceClient(c.passingTo(to), "http://"+string(to))
}

// passingTo returns a client of another member's API that marks its calls as passed on.
func (c *cluster) passingTo(to quorum.Member) *http.Client {
	return &http.Client{Transport: passing{&http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.member.Dial(ctx, to, protoAPI) },
	}}}
}

// passing marks requests as passed on.
type passing struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (p passing) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(forwardedHeader, "1")
	return p.RoundTripper.RoundTrip(r)
}

// answered gives an answer of another member its kind again. An error that nobody
// answered with is fault.Unreachable.
func answered(to quorum.Member, err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) && len(ce.Details()) > 0 {
		return apierror.FromConnect(err)
	}
	// As text: to the caller it is no answer of its own call.
	return fault.New(fault.Unreachable, "%s does not answer to the end (%v); see \"steadfast cluster show\", and try again", to, err)
}

// askHost asks a host how a machine does on it.
func (n *Node) askHost(ctx context.Context, host, machine string) (*steadfastv1.MachineStatus, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	if quorum.Member(host) == c.member.Self().Member {
		return n.hostedStatus(ctx, machine)
	}
	r, err := c.machinesAt(quorum.Member(host)).GetMachine(ctx, &steadfastv1.GetMachineRequest{Name: machine})
	if err != nil {
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unreachable, "the host %q has not answered for %v; see \"steadfast host show %s\"", host, statusTime, host)
		}
		return nil, answered(quorum.Member(host), err)
	}
	return r.GetMachine().GetStatus(), nil
}

// runsOn returns the placement of a machine on another member, or nil when it is this member
// that runs it. Fails with fault.Busy when it is placed nowhere.
func (n *Node) runsOn(ctx context.Context, machine string) (*cluster, *inventory.Placement, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, nil, err
	}
	v, m, err := n.findMachine(machine)
	if err != nil {
		return nil, nil, err
	}
	p := v.Placements[machine]
	switch {
	case passedOn(ctx):
		return c, nil, nil // as who asks knows, perhaps sooner than this one
	case p.Active() && quorum.Member(p.Host) == c.member.Self().Member:
		return c, nil, nil
	case p.Active():
		return c, p, nil
	}
	d := n.describeMachine(v, machine)
	if m.Desired == inventory.Running {
		return nil, nil, fault.New(fault.Busy, "the machine %q waits%s; see \"steadfast vm show %s\"", machine, detail(d.Detail), machine)
	}
	return nil, nil, fault.New(fault.Busy, "the machine %q does not run (%s); start it: \"steadfast vm start %s\"", machine, d.State, machine)
}

// WatchConsole implements the API's call.
func (s machineService) WatchConsole(ctx context.Context, req *steadfastv1.WatchConsoleRequest, out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
	c, p, err := s.n.runsOn(ctx, req.Machine)
	if err != nil {
		return err
	}
	if p == nil {
		// The watcher knows that there is a console before there is something on it.
		if err := out.Send(&steadfastv1.WatchConsoleResponse{}); err != nil {
			return err
		}
		return s.n.hostedWatch(ctx, req.Machine, func(p []byte) error { return out.Send(&steadfastv1.WatchConsoleResponse{Data: p}) })
	}
	host := quorum.Member(p.Host)
	ctx, leave := c.whilePlaced(ctx, p)
	defer leave() // the host's end, when the watcher has gone
	in, err := c.machinesAt(host).WatchConsole(ctx, req)
	if err != nil {
		return stillPlaced(ctx, answered(host, err))
	}
	defer in.Close()
	for in.Receive() {
		if err := out.Send(in.Msg()); err != nil {
			return err
		}
	}
	return stillPlaced(ctx, answered(host, in.Err()))
}

// TypeConsole implements the API's call.
func (s machineService) TypeConsole(ctx context.Context, req *steadfastv1.TypeConsoleRequest) (*steadfastv1.TypeConsoleResponse, error) {
	c, p, err := s.n.runsOn(ctx, req.Machine)
	switch {
	case err != nil:
		return nil, err
	case p == nil:
		return &steadfastv1.TypeConsoleResponse{}, s.n.hostedType(req.Machine, req.Data)
	}
	// A guest takes what is typed in when it likes: this may last for as long as it is there.
	ctx, leave := c.whilePlaced(ctx, p)
	defer leave()
	_, err = c.machinesAt(quorum.Member(p.Host)).TypeConsole(ctx, req)
	return &steadfastv1.TypeConsoleResponse{}, stillPlaced(ctx, answered(quorum.Member(p.Host), err))
}

// lastWordsTime is how long a host has to send the end of a console after the machine was
// placed elsewhere, or has ended. One that is stopped sends nothing, and its connection stays.
const lastWordsTime = time.Second

// errElsewhere is the cause of a context of whilePlaced.
var errElsewhere = fault.New(fault.Busy, "the machine is not where it was any more: it was started on another host, or has ended; attach again: \"steadfast vm console\"")

// whilePlaced returns a context that ends a little after a placement is not the machine's
// present one any more, as far as this member knows. leave ends it.
func (c *cluster) whilePlaced(ctx context.Context, p *inventory.Placement) (while context.Context, leave func()) {
	while, cancel := context.WithCancelCause(ctx)
	over := false // of the watcher's calls, which come one after another
	stop := c.member.Watch(func(s *quorum.State) {
		now, err := inventory.PlacementOf(s.Inventory.Entries, p.Machine)
		if over || err != nil || now.Active() && now.Generation == p.Generation {
			return
		}
		over = true
		time.AfterFunc(lastWordsTime, func() { cancel(errElsewhere) })
	})
	return while, func() {
		stop()
		cancel(nil)
	}
}

// stillPlaced is the error of what was asked under a context of whilePlaced.
func stillPlaced(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errElsewhere) {
		return errElsewhere
	}
	return err
}

// passWrite has a storage node answer a WriteMachine.
func (s machineService) passWrite(ctx context.Context, in *connect.ClientStream[steadfastv1.WriteMachineRequest]) (*steadfastv1.WriteMachineResponse, error) {
	to, err := s.n.storageNode()
	if err != nil {
		return nil, err
	}
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := c.machinesAt(to).WriteMachine(ctx)
	if err != nil {
		return nil, answered(to, err)
	}
	for in.Receive() {
		if out.Send(in.Msg()) != nil {
			break // the answer says why
		}
	}
	if err := in.Err(); err != nil {
		// What came in part only must not end there as if it were all.
		cancel()
		_, _ = out.CloseAndReceive() // it has failed
		return nil, fault.New(fault.Canceled, "what is to be written came in part only: %v", err)
	}
	resp, err := out.CloseAndReceive()
	return resp, answered(to, err)
}

// passRead has a storage node answer a ReadMachine.
func (s machineService) passRead(ctx context.Context, req *steadfastv1.ReadMachineRequest, out *connect.ServerStream[steadfastv1.ReadMachineResponse]) error {
	to, err := s.n.storageNode()
	if err != nil {
		return err
	}
	c, err := s.n.inCluster()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := c.machinesAt(to).ReadMachine(ctx, req)
	if err != nil {
		return answered(to, err)
	}
	defer in.Close()
	for in.Receive() {
		if err := out.Send(in.Msg()); err != nil {
			return err
		}
	}
	return answered(to, in.Err())
}
