package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/node/support"
)

const (
	// partBytes is how much of a file one message has, and supportFileMax what a file has at
	// most: its end is what is kept.
	partBytes      = 256 << 10
	supportFileMax = 8 << 20
	// supportTime bounds what another member may take.
	supportTime = time.Minute
)

// CollectSupport implements the API's call: this member's part, and those of all that are heard of,
// at once. Parts of several members come in turns.
func (s siteService) CollectSupport(ctx context.Context, req *steadfastv1.CollectSupportRequest, out *connect.ServerStream[steadfastv1.CollectSupportResponse]) error {
	var mu sync.Mutex
	send := func(r *steadfastv1.CollectSupportResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return out.Send(r)
	}
	self := ""
	c, err := s.n.inCluster()
	if err == nil {
		self = string(c.member.Self().Member)
	}
	parts := []func() error{func() error { return s.n.collectHere(ctx, self, send) }}
	if c != nil && !req.OnlyHere {
		for _, r := range c.member.State().Roll.Sorted() {
			if string(r.Name) != self {
				parts = append(parts, func() error { return s.n.collectFrom(ctx, c, r.Name, send) })
			}
		}
	}
	errs := make([]error, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { errs[i] = part() })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil || passedOn(ctx) {
		return err // who asks for another one's tells the rest
	}
	for _, why := range neverCollected {
		if err := send(&steadfastv1.CollectSupportResponse{LeftOut: why}); err != nil {
			return err
		}
	}
	return nil
}

// collectFrom passes on another member's part. What that cannot give is said in the stream; the
// error is of send.
func (n *Node) collectFrom(ctx context.Context, c *cluster, from quorum.Member, send func(*steadfastv1.CollectSupportResponse) error) error {
	if !c.hears(from) {
		return send(&steadfastv1.CollectSupportResponse{Member: string(from), LeftOut: "everything: it is not heard of; give \"steadfast support-bundle\" there"})
	}
	ctx, cancel := context.WithTimeout(ctx, supportTime)
	defer cancel()
	in, err := c.siteAt(from).CollectSupport(ctx, &steadfastv1.CollectSupportRequest{OnlyHere: true})
	if err == nil {
		defer in.Close()
		for in.Receive() {
			r := in.Msg()
			r.Member = string(from)
			if err := send(r); err != nil {
				return err
			}
		}
		err = in.Err()
	}
	if err == nil {
		return nil
	}
	return send(&steadfastv1.CollectSupportResponse{Member: string(from), LeftOut: "what is missing here: " + unanswered(err)})
}

// collectHere gives this member's part, without the secrets that it has.
func (n *Node) collectHere(ctx context.Context, self string, send func(*steadfastv1.CollectSupportResponse) error) error {
	clean := support.NewRedactor(n.ownSecrets()...)
	leave := func(why string) error {
		text, _ := clean.Clean([]byte(why))
		return send(&steadfastv1.CollectSupportResponse{Member: self, LeftOut: string(text)})
	}
	give := func(f support.File) error {
		data, had := clean.Clean(f.Data) // before it is cut: half of a secret would not be known
		if had {
			if err := leave("a secret that was in " + f.Name + ": somebody had put it where it does not belong"); err != nil {
				return err
			}
		}
		if len(data) > supportFileMax {
			data = data[len(data)-supportFileMax:]
			if err := leave(f.Name + ": all but its newest 8 MiB"); err != nil {
				return err
			}
		}
		for first := true; first || len(data) > 0; first = false {
			part := data[:min(len(data), partBytes)]
			if err := send(&steadfastv1.CollectSupportResponse{Member: self, File: f.Name, Data: part}); err != nil {
				return err
			}
			data = data[len(part):]
		}
		return nil
	}
	for _, one := range n.supportParts(ctx) {
		files, err := one.make()
		for _, f := range files {
			if err := give(f); err != nil {
				return err
			}
		}
		if err != nil {
			if err := leave(one.what + ": " + err.Error()); err != nil {
				return err
			}
		}
	}
	return send(&steadfastv1.CollectSupportResponse{Member: self}) // that was all of it
}

// neverCollected is what no bundle has.
var neverCollected = []string{
	"CHAP secrets, tokens, private keys, and the secrets of machines' guests",
	"what is stored: volumes, snapshots, the control state, the quorum's log",
	"memory, kernels, kernels' command lines and consoles of machines, and what hosts keep of those that differ (diverged/): files.txt lists the files",
	"comments: of initiators, and in configuration files",
}

// supportPart makes some files of a bundle.
type supportPart struct {
	what string
	make func() ([]support.File, error)
}

func (n *Node) supportParts(ctx context.Context) []supportPart {
	one := func(f support.File, err error) ([]support.File, error) {
		if err != nil {
			return nil, err
		}
		return []support.File{f}, nil
	}
	parts := []supportPart{
		{"about.json", func() ([]support.File, error) { return one(n.about()) }},
		{"site.json", func() ([]support.File, error) {
			ctx, cancel := context.WithTimeout(ctx, siteTime)
			defer cancel()
			return one(messageFile("site.json", withoutCommandLines(n.describeSite(ctx))))
		}},
		{"events.json", func() ([]support.File, error) { return one(n.keptEvents()) }},
		{"config.toml", func() ([]support.File, error) { return one(support.Config(n.cfg), nil) }},
		{"log.txt", func() ([]support.File, error) { return one(n.recentLog()) }},
		{"journal.txt", func() ([]support.File, error) { return one(support.Journal(ctx, unitOf(n.cfg))) }},
		{"metrics.txt", func() ([]support.File, error) { return one(n.metricsFile()) }},
		{"goroutines.txt", func() ([]support.File, error) { return one(support.Goroutines()) }},
		{"system", func() ([]support.File, error) { return support.System(n.cfg.DataDir), nil }},
		{"files.txt", func() ([]support.File, error) { return one(support.Listing(n.cfg.DataDir), nil) }},
	}
	for _, list := range n.lists(ctx) {
		parts = append(parts, supportPart{list.name, func() ([]support.File, error) {
			m, err := list.ask()
			if err != nil {
				return nil, err
			}
			return one(messageFile(list.name, m))
		}})
	}
	return parts
}

// list is an answer of the API as a file.
type list struct {
	name string
	ask  func() (proto.Message, error)
}

// lists are what people can list here.
func (n *Node) lists(ctx context.Context) []list {
	all := []list{
		{"sessions.json", func() (proto.Message, error) { return sessionService{n}.ListSessions(ctx, nil) }},
	}
	if n.cfg.Cluster.Stores() {
		all = append(
			all,
			list{"volumes.json", func() (proto.Message, error) {
				return volumeService{n}.ListVolumes(ctx, &steadfastv1.ListVolumesRequest{})
			}},
			list{"snapshots.json", func() (proto.Message, error) {
				return snapshotService{n}.ListSnapshots(ctx, &steadfastv1.ListSnapshotsRequest{})
			}},
			list{"targets.json", func() (proto.Message, error) { return targetService{n}.ListTargets(ctx, nil) }},
			list{"initiators.json", func() (proto.Message, error) {
				r, err := initiatorService{n}.ListInitiators(ctx, nil)
				if err != nil {
					return nil, err
				}
				for _, i := range r.Initiators {
					i.Comment = "" // anybody's words
				}
				return r, nil
			}},
		)
	}
	if _, err := n.inCluster(); err == nil {
		all = append(
			all,
			list{"datacenters.json", func() (proto.Message, error) { return datacenterService{n}.ListDatacenters(ctx, nil) }},
			list{"datastores.json", func() (proto.Message, error) { return datacenterService{n}.ListDatastores(ctx, nil) }},
		)
	}
	return all
}

// withoutCommandLines takes the kernels' command lines out: people give guests passwords by them.
func withoutCommandLines(s *steadfastv1.Site) *steadfastv1.Site {
	for _, m := range s.Machines {
		m.CommandLine = ""
	}
	return s
}

// messageFile writes an answer of the API.
func messageFile(name string, m proto.Message) (support.File, error) {
	text, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	return support.File{Name: name, Data: text}, fault.Wrap(fault.Internal, err, name)
}

// about tells which program this is.
func (n *Node) about() (support.File, error) {
	facts := map[string]any{
		"version": n.version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH, "role": string(n.role()), "node_id": n.state.NodeID(),
		"started": n.started.UTC(), "now": time.Now().UTC(), "pid": os.Getpid(), "goroutines": runtime.NumGoroutine(), "state": n.getPhase(),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		build := map[string]string{}
		for _, s := range info.Settings {
			if strings.HasPrefix(s.Key, "vcs.") || s.Key == "CGO_ENABLED" || s.Key == "-race" {
				build[s.Key] = s.Value
			}
		}
		modules := map[string]string{}
		for _, d := range info.Deps {
			modules[d.Path] = d.Version
		}
		facts["build"], facts["modules"] = build, modules
	}
	text, err := json.MarshalIndent(facts, "", "  ")
	return support.File{Name: "about.json", Data: text}, fault.Wrap(fault.Internal, err, "about.json")
}

// keptEvents are this member's own, one a line.
func (n *Node) keptEvents() (support.File, error) {
	var b bytes.Buffer
	list, _ := n.events.after(0)
	for _, e := range list {
		line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(e)
		if err != nil {
			return support.File{}, fault.Wrap(fault.Internal, err, "an event")
		}
		b.Write(append(line, '\n'))
	}
	return support.File{Name: "events.json", Data: b.Bytes()}, nil
}

// recentLog is the end of this life's log.
func (n *Node) recentLog() (support.File, error) {
	if n.recent == nil {
		return support.File{}, fault.New(fault.NotFound, "the process keeps no log in memory")
	}
	return support.File{Name: "log.txt", Data: support.WithoutArguments(n.recent())}, nil
}

// metricsFile is what a scrape would get.
func (n *Node) metricsFile() (support.File, error) {
	req, err := http.NewRequest(http.MethodGet, "http://localhost/metrics", http.NoBody)
	if err != nil {
		return support.File{}, err
	}
	kept := &keptAnswer{header: http.Header{}, status: http.StatusOK}
	n.metricsHandler().ServeHTTP(kept, req)
	if kept.status != http.StatusOK {
		return support.File{}, fmt.Errorf("metrics: status %d", kept.status)
	}
	return support.File{Name: "metrics.txt", Data: kept.body.Bytes()}, nil
}

// unitOf is the systemd unit that runs such a member, as packaging/ has them.
func unitOf(c config.Config) string {
	switch {
	case c.Cluster.Witness:
		return "steadfast-witness"
	case c.Cluster.Host:
		return "steadfast-host"
	}
	return "steadfast"
}

// ownSecrets are all that this member knows. What it cannot read, nothing of it can tell.
func (n *Node) ownSecrets() (secrets [][]byte) {
	secrets = support.SecretsIn(n.cfg.DataDir)
	for _, i := range n.state.Initiators() {
		chap, mutual, _ := n.state.Secrets(i)
		secrets = append(secrets, chap, mutual)
	}
	if f := n.cfg.Discovery.SecretFile; f != "" {
		if b, err := os.ReadFile(f); err == nil {
			secrets = append(secrets, b)
		}
	}
	c, err := n.inCluster()
	if err != nil {
		return secrets
	}
	if key, err := c.id.DerivedKey(secretsPurpose); err == nil {
		secrets = append(secrets, key)
	}
	for _, r := range c.member.State().Roll.Members {
		if s, err := c.secretOf(r); err == nil {
			secrets = append(secrets, []byte(s))
		}
	}
	return secrets
}

// SupportStopped makes what a bundle can have of a member whose process does not answer.
func SupportStopped(ctx context.Context, c config.Config) (files []support.File, leftOut []string) {
	secrets := support.SecretsIn(c.DataDir)
	if f := c.Discovery.SecretFile; f != "" {
		if b, err := os.ReadFile(f); err == nil {
			secrets = append(secrets, b)
		}
	}
	clean := support.NewRedactor(secrets...)
	files = append(support.System(c.DataDir), support.Config(c), support.Listing(c.DataDir))
	if journal, err := support.Journal(ctx, unitOf(c)); err != nil {
		leftOut = append(leftOut, "journal.txt: "+err.Error())
	} else {
		files = append(files, journal)
	}
	for i := range files {
		had := false
		if files[i].Data, had = clean.Clean(files[i].Data); had {
			leftOut = append(leftOut, "a secret that was in "+files[i].Name+": somebody had put it where it does not belong")
		}
	}
	return files, append(leftOut, neverCollected...)
}
