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

// storageNode returns a storage node that is heard of. Fails with fault.Unreachable.
func (n *Node) storageNode() (quorum.Member, error) {
	c, err := n.inCluster()
	if err != nil {
		return "", err
	}
	ages := c.member.Reachable()
	for _, r := range c.member.State().Roll.Sorted() {
		if age, ok := ages[r.Name]; r.Role == quorum.RoleNode && ok && age < heardLately {
			return r.Name, nil
		}
	}
	return "", fault.New(fault.Unreachable, "no storage node is heard of from here; see \"steadfast cluster show\", and call one of them")
}

// machinesAt returns a client of another member's MachineService. What it is asked is
// not passed on further.
func (c *cluster) machinesAt(to quorum.Member) steadfastv1connect.MachineServiceClient {
	return steadfastv1connect.NewMachineServiceClient(&http.Client{Transport: passing{&http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.member.Dial(ctx, to, protoAPI) },
	}}}, "http://"+string(to))
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
	return fault.New(fault.Unreachable, "%s does not answer to the end: %v", to, err)
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
			return nil, fault.New(fault.Unreachable, "the host %q has not answered for %v", host, statusTime)
		}
		return nil, answered(quorum.Member(host), err)
	}
	return r.GetMachine().GetStatus(), nil
}

// runsOn returns the host that a machine is placed on. here: it is this member. Fails with
// fault.Busy when it is placed nowhere.
func (n *Node) runsOn(ctx context.Context, machine string) (c *cluster, host quorum.Member, here bool, err error) {
	if c, err = n.inCluster(); err != nil {
		return nil, "", false, err
	}
	v, m, err := n.findMachine(machine)
	if err != nil {
		return nil, "", false, err
	}
	p := v.Placements[machine]
	me := c.member.Self().Member
	switch {
	case passedOn(ctx):
		return c, me, true, nil // as who asks knows, perhaps sooner than this one
	case p.Active():
		return c, quorum.Member(p.Host), quorum.Member(p.Host) == me, nil
	}
	d := n.describeMachine(v, machine)
	if m.Desired == "running" {
		return nil, "", false, fault.New(fault.Busy, "the machine %q waits%s; see \"steadfast vm show %s\"", machine, detail(d.Detail), machine)
	}
	return nil, "", false, fault.New(fault.Busy, "the machine %q does not run (%s); start it: \"steadfast vm start %s\"", machine, d.State, machine)
}

// WatchConsole implements the API's call.
func (s machineService) WatchConsole(ctx context.Context, req *steadfastv1.WatchConsoleRequest, out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
	c, host, here, err := s.n.runsOn(ctx, req.Machine)
	if err != nil {
		return err
	}
	if here {
		// The watcher knows that there is a console before there is something on it.
		if err := out.Send(&steadfastv1.WatchConsoleResponse{}); err != nil {
			return err
		}
		return s.n.hostedWatch(ctx, req.Machine, func(p []byte) error { return out.Send(&steadfastv1.WatchConsoleResponse{Data: p}) })
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the host's end, when the watcher has gone
	in, err := c.machinesAt(host).WatchConsole(ctx, req)
	if err != nil {
		return answered(host, err)
	}
	defer in.Close()
	for in.Receive() {
		if err := out.Send(in.Msg()); err != nil {
			return err
		}
	}
	return answered(host, in.Err())
}

// TypeConsole implements the API's call.
func (s machineService) TypeConsole(ctx context.Context, req *steadfastv1.TypeConsoleRequest) (*steadfastv1.TypeConsoleResponse, error) {
	_, host, here, err := s.n.runsOn(ctx, req.Machine)
	if err == nil && !here {
		err = elsewhere(ctx, host)
	}
	if err == nil {
		err = s.n.hostedType(req.Machine, req.Data)
	}
	return &steadfastv1.TypeConsoleResponse{}, err
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
	out, err := c.machinesAt(to).WriteMachine(ctx)
	if err != nil {
		return nil, answered(to, err)
	}
	for in.Receive() {
		if out.Send(in.Msg()) != nil {
			break // the answer says why
		}
	}
	resp, err := out.CloseAndReceive()
	return resp, errors.Join(answered(to, err), in.Err())
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
