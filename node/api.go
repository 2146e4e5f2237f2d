package node

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/node/apierror"
)

// requestBytesMax bounds one request of the API.
const requestBytesMax = 1 << 20

// apiMux returns a handler of every service.
func (n *Node) apiMux() http.Handler {
	mux := http.NewServeMux()
	n.handle(mux)
	return n.forwarding(mux)
}

// handle enters every service into mux.
func (n *Node) handle(mux *http.ServeMux) {
	opts := []connect.HandlerOption{connect.WithInterceptors(faults{}), connect.WithReadMaxBytes(requestBytesMax)}
	mux.Handle(steadfastv1connect.NewPoolServiceHandler(poolService{n}, opts...))
	mux.Handle(steadfastv1connect.NewDriveServiceHandler(driveService{n}, opts...))
	mux.Handle(steadfastv1connect.NewVolumeServiceHandler(volumeService{n}, opts...))
	mux.Handle(steadfastv1connect.NewSnapshotServiceHandler(snapshotService{n}, opts...))
	mux.Handle(steadfastv1connect.NewTargetServiceHandler(targetService{n}, opts...))
	mux.Handle(steadfastv1connect.NewInitiatorServiceHandler(initiatorService{n}, opts...))
	mux.Handle(steadfastv1connect.NewSessionServiceHandler(sessionService{n}, opts...))
	mux.Handle(steadfastv1connect.NewNodeServiceHandler(nodeService{n}, opts...))
	mux.Handle(steadfastv1connect.NewClusterServiceHandler(clusterService{n}, opts...))
	mux.Handle(steadfastv1connect.NewGroupServiceHandler(groupService{n}, opts...))
	mux.Handle(steadfastv1connect.NewDatacenterServiceHandler(datacenterService{n}, opts...))
	mux.Handle(steadfastv1connect.NewMachineServiceHandler(machineService{n: n}, opts...))
	mux.Handle(steadfastv1connect.NewFaultToleranceServiceHandler(ftService{n}, opts...))
	mux.Handle(steadfastv1connect.NewSiteServiceHandler(siteService{n}, opts...))
}

// faults turns the errors of every call into the API's.
type faults struct{}

// WrapUnary implements connect.Interceptor.
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, apierror.ToConnect(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return apierror.ToConnect(next(ctx, conn))
	}
}

// nodeService implements the API's NodeService.
type nodeService struct{ n *Node }

// GetStatus implements the API's call.
func (s nodeService) GetStatus(context.Context, *steadfastv1.GetStatusRequest) (*steadfastv1.GetStatusResponse, error) {
	return &steadfastv1.GetStatusResponse{Status: s.n.Status()}, nil
}

// Status describes the node.
func (n *Node) Status() *steadfastv1.Status {
	out := &steadfastv1.Status{
		NodeId: n.state.NodeID(), Version: n.version, State: n.getPhase(), Started: stamp(n.started), Portals: n.Portals(),
		Targets: int32(len(n.state.Targets())), Initiators: int32(len(n.state.Initiators())), Sessions: int32(n.targets.Stats().Sessions),
	}
	for _, p := range n.allPools() {
		d := n.describePool(p)
		out.Pools = append(out.Pools, d)
		out.Volumes += d.Volumes
		if d.State == "absent" && out.Problem == "" {
			out.Problem = "pool " + d.Name + " cannot be opened: " + d.Problem
		}
	}
	n.whereabouts(out)
	out.Alone = n.aloneHere()
	total := n.units.total()
	out.Counters = &steadfastv1.Counters{
		Reads: total.Reads, Writes: total.Writes, ReadBytes: total.ReadBytes, WrittenBytes: total.WrittenBytes,
		ReadNanoseconds: total.ReadNanos, WriteNanoseconds: total.WriteNanos, Errors: total.Errors,
	}
	return out
}

// WatchEvents implements the API's call.
func (s nodeService) WatchEvents(ctx context.Context, req *steadfastv1.WatchEventsRequest, out *connect.ServerStream[steadfastv1.WatchEventsResponse]) error {
	return s.n.watchEvents(ctx, req, func(r *steadfastv1.WatchEventsResponse) error { return out.Send(r) })
}

// watchEvents gives send this node's events.
func (n *Node) watchEvents(ctx context.Context, req *steadfastv1.WatchEventsRequest, send func(*steadfastv1.WatchEventsResponse) error) error {
	last := req.After
	if req.Life != 0 && req.Life != n.life() {
		last = 0
	}
	for {
		list, grown := n.events.after(last)
		for _, e := range list {
			if err := send(&steadfastv1.WatchEventsResponse{Event: e, Life: n.life()}); err != nil {
				return err
			}
			last = e.Sequence
		}
		if req.KeptOnly {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		case <-n.ctx.Done():
			return nil
		}
	}
}

// life numbers this life of the process, for those who count its events.
func (n *Node) life() uint64 { return uint64(n.started.UnixNano()) }

// sessionService implements the API's SessionService.
type sessionService struct{ n *Node }

// ListSessions implements the API's call.
func (s sessionService) ListSessions(context.Context, *steadfastv1.ListSessionsRequest) (*steadfastv1.ListSessionsResponse, error) {
	out := &steadfastv1.ListSessionsResponse{}
	for _, session := range s.n.targets.Sessions() {
		out.Sessions = append(out.Sessions, describeSession(session))
	}
	return out, nil
}

// GetSession implements the API's call.
func (s sessionService) GetSession(_ context.Context, req *steadfastv1.GetSessionRequest) (*steadfastv1.GetSessionResponse, error) {
	for _, session := range s.n.targets.Sessions() {
		if int32(session.TSIH) == req.Id {
			return &steadfastv1.GetSessionResponse{Session: describeSession(session)}, nil
		}
	}
	return nil, noSession(req.Id)
}

// DropSession implements the API's call.
func (s sessionService) DropSession(_ context.Context, req *steadfastv1.DropSessionRequest) (*steadfastv1.DropSessionResponse, error) {
	if req.Id <= 0 || req.Id > 1<<16-1 {
		return nil, noSession(req.Id)
	}
	if err := s.n.targets.DropSession(uint16(req.Id)); err != nil {
		return nil, noSession(req.Id)
	}
	s.n.publish("session-dropped", "", "", "session %d was dropped by an administrator", req.Id)
	return &steadfastv1.DropSessionResponse{}, nil
}
