package node

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// place begins this node's part in deciding where machines run; stop ends it, and
// returns when it has ended.
func (n *Node) place(c *cluster) (stop func()) {
	p := newPlacer(c.member, n.log, n.events.publish)
	others := &heardElsewhere{dial: func(ctx context.Context, to quorum.Member) (net.Conn, error) { return c.member.Dial(ctx, to, protoAPI) }}
	p.ask = others.ask
	c.placer = p
	ctx, cancel := context.WithCancel(n.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(ctx)
		others.close()
	}()
	return func() {
		cancel()
		<-ended
	}
}

// heardElsewhere asks other storage nodes what they have heard of hosts. The
// connection to each stays: it is asked twice a second.
type heardElsewhere struct {
	dial func(context.Context, quorum.Member) (net.Conn, error)

	mu    sync.Mutex
	nodes map[quorum.Member]*http.Transport
}

// ask is placer.ask.
func (h *heardElsewhere) ask(ctx context.Context, to quorum.Member) (placement.Heard, error) {
	client := steadfastv1connect.NewDatacenterServiceClient(&http.Client{Transport: h.transport(to)}, "http://"+string(to))
	r, err := client.GetHeard(ctx, &steadfastv1.GetHeardRequest{})
	if err != nil {
		return placement.Heard{}, fault.Wrap(fault.Unreachable, err, "what node "+string(to)+" has heard of hosts")
	}
	out := placement.Heard{Node: to, Listening: time.Duration(r.ListeningNanoseconds), First: r.FirstBoots}
	for _, host := range r.Hosts {
		out.Hosts = append(out.Hosts, placement.Report{Host: host.Host, Boot: host.Boot, Age: time.Duration(host.AgeNanoseconds)})
	}
	return out, nil
}

func (h *heardElsewhere) transport(to quorum.Member) *http.Transport {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes == nil {
		h.nodes = map[quorum.Member]*http.Transport{}
	}
	t := h.nodes[to]
	if t == nil {
		t = &http.Transport{
			MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dial(ctx, to) },
		}
		h.nodes[to] = t
	}
	return t
}

func (h *heardElsewhere) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.nodes {
		t.CloseIdleConnections()
	}
}

// GetHeard implements the API's call.
func (s datacenterService) GetHeard(context.Context, *steadfastv1.GetHeardRequest) (*steadfastv1.GetHeardResponse, error) {
	c, err := s.n.inCluster()
	if err != nil {
		return nil, err
	}
	if c.placer == nil {
		return nil, fault.New(fault.Invalid, "this is no storage node: it listens to no hosts")
	}
	h := c.placer.heard(c.member.State())
	out := &steadfastv1.GetHeardResponse{ListeningNanoseconds: int64(h.Listening), FirstBoots: h.First}
	for _, r := range h.Hosts {
		out.Hosts = append(out.Hosts, &steadfastv1.HeardHost{Host: r.Host, Boot: r.Boot, AgeNanoseconds: int64(r.Age)})
	}
	return out, nil
}
