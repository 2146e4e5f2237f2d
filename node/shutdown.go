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

// exitDelay lets the answer of a shutdown leave before the process ends.
const exitDelay = 200 * time.Millisecond

// ShutdownCluster implements the API's call: the other storage nodes first, so
// that this one's copy is the newest, then the witness, then this node.
func (s clusterService) ShutdownCluster(ctx context.Context, req *steadfastv1.ShutdownClusterRequest) (*steadfastv1.ShutdownClusterResponse, error) {
	n := s.n
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	switch {
	case req.Cluster != c.id.Cluster():
		return nil, fault.New(fault.Invalid, "this ends every group of cluster %s: clients lose their disks until it is started again. Say so with --confirm %s", c.id.Cluster(), c.id.Cluster())
	case n.exit == nil:
		return nil, fault.New(fault.Invalid, "this process was not started as a daemon and ends by its own command")
	}
	if !req.OnlyThis {
		if err := n.shutdownOthers(ctx, c, req.Cluster); err != nil {
			return nil, err
		}
	}
	n.publish("cluster-shutdown", "", "", "this node was told to end, with its cluster")
	time.AfterFunc(exitDelay, n.exit)
	return &steadfastv1.ShutdownClusterResponse{}, nil
}

// shutdownOthers tells the other members to end: hosts, whose machines need
// storage to end, storage nodes, then witnesses. One that does not answer is not
// running, or cut off, and is said.
func (n *Node) shutdownOthers(ctx context.Context, c *cluster, confirm string) error {
	var errs []error
	for _, role := range []quorum.Role{quorum.RoleHost, quorum.RoleNode, quorum.RoleWitness} {
		for _, r := range c.member.State().Roll.Sorted() {
			if r.Role != role || r.Name == c.member.Self().Member {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, decideTime)
			_, err := n.clusterOf(c, r.Name).ShutdownCluster(ctx, &steadfastv1.ShutdownClusterRequest{Cluster: confirm, OnlyThis: true})
			cancel()
			if err != nil {
				errs = append(errs, fault.Wrap(fault.KindOf(err), err, "member "+string(r.Name)+" was not told to end"))
			}
		}
	}
	return errors.Join(errs...)
}

// peerHTTP returns a client of another member's API.
func peerHTTP(c *cluster, to quorum.Member) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.member.Dial(ctx, to, protoAPI)
		},
	}}
}

// peerOptions mark calls as passed on, and give their errors their kinds.
func peerOptions() connect.ClientOption { return connect.WithInterceptors(peerCalls{}) }

func (n *Node) clusterOf(c *cluster, to quorum.Member) steadfastv1connect.ClusterServiceClient {
	return steadfastv1connect.NewClusterServiceClient(peerHTTP(c, to), "http://"+string(to), peerOptions())
}

func (n *Node) groupsOf(c *cluster, to quorum.Member) steadfastv1connect.GroupServiceClient {
	return steadfastv1connect.NewGroupServiceClient(peerHTTP(c, to), "http://"+string(to), peerOptions())
}

// peerCalls are calls of one member to another.
type peerCalls struct{}

// WrapUnary implements connect.Interceptor.
func (peerCalls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set(forwardedHeader, "1")
		resp, err := next(ctx, req)
		if err != nil {
			err = apierror.FromConnect(err)
		}
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (peerCalls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set(forwardedHeader, "1")
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (peerCalls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
