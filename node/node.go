// Package node assembles a member from its parts, starts and stops them in an order
// that is safe for those who have disks on it, and serves the API by which it is
// administered. It is the one place where both halves meet: a member is a storage node, a
// host that runs machines, or a witness that only votes, as its configuration says. On one
// box they are processes of their own.
//
// # Start
//
// Of a storage node: the data directory is locked, the control state read, the pools opened, the
// logical units and targets set up, then the API served, and last of all the
// portals opened: an initiator that can connect finds everything there. While
// a pool of the control state cannot be opened (its drives come up late, say)
// the portals stay shut and the node keeps trying: to an initiator a node that
// does not answer is a reason to wait, and a volume that does not exist is a
// reason to give up.
//
// # Stop
//
// Backwards: no change is admitted any more, portals close, initiators are
// asked to log out and dropped when they do not, which ends when every task
// has landed; then the pools write a checkpoint and close, and the lock goes.
// A crash in any of it loses nothing that was acknowledged.
//
// # In a cluster
//
// A member of a cluster (cluster.go) keeps what initiators, groups and mappings of
// mirrored volumes are in the cluster's inventory, and what is its own (pools, plain
// volumes, targets) in its control state: decided takes in what others changed. What a
// group is and does here is node/ha's. A call about a group goes to its owner, whichever
// node it was made on: a handler that finds itself on the wrong one returns elsewhere,
// and forward.go passes the call on, once.
//
// Storage nodes also decide where machines run, and which hosts are lost (placement.go):
// all of them at once, by edits that name the revision that they were decided at. A host
// follows what is decided: hosting*.go gives package compute/host the cluster's volumes,
// networks and links, and reach*.go has the targets let each member at just what it runs.
//
// # Where things are
//
//	node, shutdown, lock, notify     start, stop, the service manager
//	pools, units, access             pools that come and go; plain volumes as units
//	cluster, mirrored, verify        membership; volumes of groups; comparing copies
//	api*, convert, names, forward    the API, a file a service or a part of one
//	placement, heard                 which host a machine runs on; what storage nodes hear of hosts
//	guards                           what machines stand on is not taken away under them
//	hosting*                         of a host: its machines, their networks, links of pairs, its end
//	reach*                           members as initiators: what each sees, what it proves, how it gets there
//	events*, metrics*                what is told to people and to Prometheus
//	api_site, api_support            the whole site on a page (overview judges it); bundles for who helps (support)
//	check                            an offline check of a pool
//	memory, priority                 the process itself
//	handed                           aliases whose sockets another process has
//
// # Trust and locks
//
// Whoever can open the API's socket may do anything. Changes hold admin for
// their whole length, so that checks that span pools, targets and mappings
// stay true; mu guards the maps that readers use and is held for moments only.
// Order: admin, then mu. The maintain loops of pools take admin only by
// trying, since a stop waits for them with admin held.
package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/config"
	"steadfast/node/control"
	"steadfast/san/target"
)

// retryEvery is how long the node waits before it tries to open an absent
// pool again.
const retryEvery = 5 * time.Second

// apiPatience is how long calls in progress are waited for at the end.
const apiPatience = 5 * time.Second

// handOverTime bounds how long a stop waits for its groups to go to their other
// nodes.
const handOverTime = 3 * time.Second

// Options are what a node is started with.
type Options struct {
	Config  config.Config
	Version string // of the program, for people
	// Log receives the node's log; nil: slog.Default().
	Log *slog.Logger
	// Recent returns the newest part of what was logged, for who is asked for help; nil: it is not
	// kept.
	Recent func() []byte
	// Getenv finds the service manager (sd_notify); nil: there is none.
	Getenv func(string) string
	// Exit asks the process to end, as a signal would; nil: it is not to be asked.
	Exit func()
	// Guard is the path of the binary to run as the node's guard, once it is in a
	// cluster (package guard); empty: none.
	Guard string
}

// Node is a running storage node.
type Node struct {
	cfg     config.Config
	version string
	log     *slog.Logger
	recent  func() []byte
	exit    func()
	guard   string
	notify  notifier
	started time.Time
	ballast []byte // see ballastBytes

	events  *events
	state   *control.State
	units   *units
	targets *target.Server
	poolQ   chan poolEvent

	// stop ends the background; background waits for it.
	ctx        context.Context
	stop       context.CancelFunc
	background sync.WaitGroup
	lock       io.Closer
	servers    []func() error // each ends one HTTP server

	admin   sync.Mutex // serialises changes
	closing bool       // under admin

	mu      sync.RWMutex
	pools   map[string]*pool       // by identifier, hex
	open    map[string]*openVolume // mapped volumes, by identifier, hex
	auths   map[string]iscsi.Auth  // of initiators, by name: secrets are read once
	portals []*steadfastv1.Portal  // that are open, with the addresses they got
	phase   string                 // as Status.state says it
	cluster *cluster               // the node's membership, or nil
	// clusterProblem is why the node cannot take part in the cluster that it has
	// a membership of.
	clusterProblem string

	membership sync.Mutex // serialises becoming a member and leaving
	// stopTrying ends the attempts to take part in the cluster; nil: there are none.
	stopTrying func()
}

// Start starts a node. When it returns, the API is served, and the portals are
// open unless a pool is absent. Errors have the kinds of their causes:
// fault.Busy when the data directory or an address is in use.
func Start(ctx context.Context, o Options) (*Node, error) {
	n := &Node{
		ballast: make([]byte, ballastBytes),
		cfg:     o.Config, version: o.Version, log: o.Log, recent: o.Recent, exit: o.Exit, guard: o.Guard, started: time.Now(),
		poolQ: make(chan poolEvent, 1024),
		pools: map[string]*pool{}, open: map[string]*openVolume{}, auths: map[string]iscsi.Auth{}, phase: "starting",
	}
	if n.log == nil {
		n.log = slog.Default()
	}
	if o.Getenv != nil {
		n.notify = newNotifier(o.Getenv)
	}
	n.events = newEvents(n.log)
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.background.Go(n.relayEvents)
	steps := []func() error{n.takeData, n.startTargets, n.openPools, n.openCluster, n.serveAPI, n.serveMetrics, n.serveHanded}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, errors.Join(err, n.takeDown())
		}
		if ctx.Err() != nil {
			return nil, errors.Join(fault.Wrap(fault.Canceled, context.Cause(ctx), "start"), n.takeDown())
		}
	}
	if err := n.goLive(); err != nil {
		return nil, errors.Join(err, n.takeDown())
	}
	n.background.Go(n.beat)
	return n, nil
}

// takeData locks the data directory and reads the control state.
func (n *Node) takeData() error {
	dir := n.cfg.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(fault.Denied, err, "cannot make the data directory; change data_dir, or run as a user who may")
	}
	var err error
	if n.lock, err = lockDir(dir); err != nil {
		return err
	}
	n.state, err = control.Open(dir)
	return err
}

// startTargets makes the iSCSI server and its targets, without portals.
func (n *Node) startTargets() error {
	discovery, err := n.discoveryAuth()
	if err != nil {
		return err
	}
	n.units = newUnits(n.cfg.Portals)
	l := n.cfg.Limits
	n.targets, err = target.New(target.Config{
		Discovery:   discovery,
		Limits:      target.Limits{Sessions: l.Sessions, QueueDepth: l.QueueDepth, Memory: int64(l.Memory)},
		Times:       target.Times{Logout: max(time.Duration(n.cfg.Drain), time.Millisecond)},
		Log:         n.log,
		Connections: n.connectionChanged,
		Closing:     n.connClosing,
	}, n.units)
	if err != nil {
		return err
	}
	for _, t := range n.state.Targets() {
		if err := n.offer(t); err != nil {
			return err
		}
	}
	return nil
}

// discoveryAuth reads what an initiator must prove for discovery.
func (n *Node) discoveryAuth() (iscsi.Auth, error) {
	d := n.cfg.Discovery
	if d.User == "" {
		return iscsi.Auth{}, nil
	}
	secret, err := os.ReadFile(d.SecretFile)
	if err != nil {
		return iscsi.Auth{}, fault.Wrap(fault.Invalid, err, "cannot read the discovery secret; correct chap_secret_file")
	}
	return iscsi.Auth{In: &iscsi.Credentials{Name: d.User, Secret: []byte(strings.TrimRight(string(secret), "\r\n"))}}, nil
}

// goLive opens the portals, or leaves that to retry while a pool is absent.
func (n *Node) goLive() error {
	n.admin.Lock()
	defer n.admin.Unlock()
	absent := n.absentPools()
	if len(absent) > 0 {
		n.setPhase("waiting")
		n.events.publish(&steadfastv1.Event{
			Severity: severityError, Kind: "portals-shut", Pool: absent[0].name,
			Text: "the portals stay shut until every pool is open: " + absent[0].problem,
		})
		// The service manager is told ready, too: the API answers, and what
		// is missing is not helped by a restart.
		n.tell("READY=1\nSTATUS=waiting for pool " + absent[0].name)
		n.background.Go(n.retry)
		return nil
	}
	return n.openPortals()
}

// openPortals listens for initiators. Under admin.
func (n *Node) openPortals() error {
	var open []*steadfastv1.Portal
	for _, p := range n.cfg.Portals {
		at, err := n.targets.Listen(target.Portal{Address: string(p.Address), Group: p.Group})
		if err != nil {
			for _, done := range n.cfg.Portals[:len(open)] {
				err = errors.Join(err, n.targets.Unlisten(string(done.Address)))
			}
			return err
		}
		open = append(open, &steadfastv1.Portal{Address: at.String(), Group: int32(p.Group)})
	}
	n.mu.Lock()
	n.portals = open
	n.mu.Unlock()
	n.setPhase("serving")
	n.tell("READY=1\nSTATUS=serving")
	n.log.Info("serving", "portals", len(open), "targets", len(n.targets.Targets()))
	return nil
}

// retry tries to open absent pools until there are none, then goes live.
func (n *Node) retry() {
	t := time.NewTicker(retryEvery)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		if n.retryOnce() {
			return
		}
	}
}

// retryOnce tries once, and reports whether the node is live or ends.
func (n *Node) retryOnce() bool {
	unlock, err := n.change()
	if err != nil {
		return true
	}
	defer unlock()
	return n.retryLocked()
}

// retryLocked is retryOnce under admin.
func (n *Node) retryLocked() bool {
	for _, p := range n.absentPools() {
		rec, ok := n.state.Pool(p.id)
		if !ok {
			continue
		}
		if err := n.openPool(rec); err == nil {
			n.publish("pool-open", rec.Name, "", "pool %q is open", rec.Name)
		}
	}
	if len(n.absentPools()) > 0 {
		return false
	}
	if n.getPhase() != "waiting" {
		return true
	}
	if err := n.openPortals(); err != nil {
		n.log.Error("the portals cannot be opened; trying again", "error", err)
		return false
	}
	return true
}

// beat gives signs of life for as long as the parts answer: a deadlock in one
// of them stops the signs, and the service manager starts the node anew.
func (n *Node) beat() {
	if n.notify.watchdog <= 0 {
		return
	}
	t := time.NewTicker(n.notify.watchdog)
	defer t.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-t.C:
		}
		n.targets.Stats()
		for _, p := range n.allPools() {
			if s := p.opened(); s != nil {
				s.Status()
			}
		}
		n.tell("WATCHDOG=1")
	}
}

// tell passes state to the service manager.
func (n *Node) tell(state string) {
	if err := n.notify.send(state); err != nil {
		n.log.Debug("the service manager was not told", "state", state, "error", err)
	}
}

// change begins a change of the node: it holds admin until the returned
// function is called. Fails with fault.Canceled when the node is stopping.
func (n *Node) change() (unlock func(), err error) {
	n.admin.Lock()
	if n.closing {
		n.admin.Unlock()
		return nil, fault.New(fault.Canceled, "the node is stopping")
	}
	n.adoptShared()
	return n.admin.Unlock, nil
}

func (n *Node) setPhase(phase string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.phase = phase
}

func (n *Node) getPhase() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.phase
}

// Portals returns the addresses that initiators reach the node at; none while
// it waits for a pool.
func (n *Node) Portals() []*steadfastv1.Portal {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.portals
}

// Stop ends the node, in the order that the package's comment tells. It
// returns when nothing of it is left.
func (n *Node) Stop() error {
	n.admin.Lock()
	if n.closing {
		n.admin.Unlock()
		return nil
	}
	n.closing = true
	n.admin.Unlock()
	n.setPhase("stopping")
	n.tell("STOPPING=1\nSTATUS=asking initiators to log out")
	n.log.Info("stopping", "sessions", n.targets.Stats().Sessions)
	if gs := n.haGroups(); gs != nil {
		ctx, cancel := context.WithTimeout(context.Background(), handOverTime)
		gs.Leave(ctx)
		cancel()
	}
	return n.takeDown()
}

// takeDown ends what Start got to, from the outside in.
func (n *Node) takeDown() error {
	n.admin.Lock()
	n.closing = true
	n.admin.Unlock()
	if n.stopTrying != nil {
		n.stopTrying()
	}
	err := n.closeCluster()
	if n.targets != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n.cfg.Drain))
		n.targets.Close(ctx)
		cancel()
	}
	// The API tells "stopping" until here. Nothing changes any more.
	for _, end := range n.servers {
		err = errors.Join(err, end())
	}
	if n.units != nil {
		n.units.Close()
	}
	err = errors.Join(err, n.closePools())
	n.stop()
	n.background.Wait()
	if n.state != nil {
		err = errors.Join(err, n.state.Close())
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.Close())
	}
	return err
}

// serveAPI serves the API and the metrics on the Unix socket.
func (n *Node) serveAPI() error {
	l, err := listenUnix(n.cfg.Socket)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", n.apiMux())
	mux.Handle("/metrics", n.metricsHandler())
	n.serve(l, mux)
	return nil
}

// listenUnix makes the socket, for its owner alone. A socket that nobody
// answers on is what a crash left, and is replaced.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot make the socket's directory; change socket, or run as a user who may")
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close() // it answered, which is all that was asked
		return nil, fault.New(fault.Busy, "another node answers on %s; stop it first, or give this one another socket", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fault.New(fault.Exists, "%s exists and is no socket; change socket, or remove the file", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fault.Wrap(fault.Denied, err, "cannot replace the old socket")
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot make the API's socket")
	}
	// Nothing has been accepted yet: who connected in between is served only
	// after this, and had to be of the same user or root to get past a usual
	// umask; the directory of the packaged unit is closed to others anyway.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Denied, err, "cannot protect the API's socket"), l.Close())
	}
	return l, nil
}

// serveMetrics serves the metrics over TCP, if configured.
func (n *Node) serveMetrics() error {
	if n.cfg.Metrics == "" {
		return nil
	}
	l, err := net.Listen("tcp", string(n.cfg.Metrics))
	if err != nil {
		return fault.Wrap(fault.Busy, err, "cannot serve metrics; change metrics_address")
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", n.metricsHandler())
	n.serve(l, mux)
	return nil
}

// serve serves h on l until the node stops.
func (n *Node) serve(l net.Listener, h http.Handler) {
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: connContext,
		ErrorLog:    slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("serving ended", "address", l.Addr().String(), "error", err)
		}
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers = append(n.servers, func() error {
		// Streams (steadfast events) end with their context; only then are
		// their connections idle.
		cancel()
		patience, stop := context.WithTimeout(context.Background(), apiPatience)
		defer stop()
		err := srv.Shutdown(patience)
		if err != nil {
			err = srv.Close()
		}
		<-done
		return err
	})
}
