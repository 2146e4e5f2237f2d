package node

import (
	"context"
	"fmt"
	"maps"
	"slices"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/control"
)

// targetService implements the API's TargetService.
type targetService struct{ n *Node }

// defaultTarget is what the node's own target is called.
func (n *Node) defaultTarget() string { return "iqn.2026-11.io.steadfast:" + n.state.NodeID() }

// findTarget returns a target by its name in any case.
func (n *Node) findTarget(name string) (control.Target, error) {
	if t, ok := n.state.Target(normal(name)); ok {
		return t, nil
	}
	var names []string
	for _, t := range n.state.Targets() {
		names = append(names, t.Name)
	}
	return control.Target{}, unknown("target", name, "target list", names)
}

// targetFor returns the name of the target to map through: the one named, or
// the only one, or the node's own, which is made when there is none at all.
// Under admin.
func (n *Node) targetFor(name string) (string, error) {
	if name != "" {
		t, err := n.findTarget(name)
		return t.Name, err
	}
	all := n.state.Targets()
	if len(all) == 1 {
		return all[0].Name, nil
	}
	own := n.defaultTarget()
	if _, ok := n.state.Target(own); ok {
		return own, nil
	}
	if len(all) > 0 {
		return "", fault.New(fault.Invalid, "there are %d targets; name one with --target, for example %s", len(all), all[0].Name)
	}
	return own, n.addTarget(control.Target{Name: own})
}

// addTarget stores and offers a target. Under admin.
func (n *Node) addTarget(t control.Target) error {
	if err := n.state.PutTarget(t); err != nil {
		return err
	}
	if err := n.offer(t); err != nil {
		return err
	}
	n.publish("target-created", "", "", "target %s was created", t.Name)
	return nil
}

// describe returns a target as the API shows it.
func (s targetService) describe(t control.Target) *steadfastv1.Target {
	n := s.n
	out := &steadfastv1.Target{
		Name: t.Name, Alias: t.Alias,
		Initiators: slices.Sorted(maps.Keys(n.state.View(t.Name))),
		Mappings:   describeMappings(n.state.Mappings(func(m control.Mapping) bool { return m.Target == t.Name })),
	}
	for _, g := range t.Groups {
		out.Groups = append(out.Groups, int32(g))
	}
	for _, p := range n.Portals() {
		if len(t.Groups) == 0 || slices.Contains(t.Groups, uint16(p.Group)) {
			out.Portals = append(out.Portals, p)
		}
	}
	for _, session := range n.targets.Sessions() {
		if session.Target == t.Name {
			out.Sessions++
		}
	}
	return out
}

// groupTags checks portal group tags against the portals there are.
func (n *Node) groupTags(tags []int32) ([]uint16, error) {
	var out []uint16
	for _, tag := range tags {
		known := false
		for _, p := range n.cfg.Portals {
			known = known || int32(p.Group) == tag
		}
		if !known {
			return nil, fault.New(fault.Invalid, "no portal has the group tag %d; see \"steadfast status\" for those there are", tag)
		}
		out = append(out, uint16(tag))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// CreateTarget implements the API's call.
func (s targetService) CreateTarget(_ context.Context, req *steadfastv1.CreateTargetRequest) (*steadfastv1.CreateTargetResponse, error) {
	unlock, err := s.n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	name := s.n.defaultTarget()
	if req.Name != "" {
		if name, err = iscsi.NormalizeName(req.Name); err != nil {
			return nil, err
		}
	}
	if _, ok := s.n.state.Target(name); ok {
		return nil, fault.New(fault.Exists, "target %s exists already", name)
	}
	groups, err := s.n.groupTags(req.Groups)
	if err != nil {
		return nil, err
	}
	t := control.Target{Name: name, Alias: req.Alias, Groups: groups}
	if err := s.n.addTarget(t); err != nil {
		return nil, err
	}
	return &steadfastv1.CreateTargetResponse{Target: s.describe(t)}, nil
}

// ListTargets implements the API's call.
func (s targetService) ListTargets(context.Context, *steadfastv1.ListTargetsRequest) (*steadfastv1.ListTargetsResponse, error) {
	out := &steadfastv1.ListTargetsResponse{}
	for _, t := range s.n.state.Targets() {
		out.Targets = append(out.Targets, s.describe(t))
	}
	return out, nil
}

// GetTarget implements the API's call.
func (s targetService) GetTarget(_ context.Context, req *steadfastv1.GetTargetRequest) (*steadfastv1.GetTargetResponse, error) {
	t, err := s.n.findTarget(req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetTargetResponse{Target: s.describe(t)}, nil
}

// SetTarget implements the API's call.
func (s targetService) SetTarget(_ context.Context, req *steadfastv1.SetTargetRequest) (*steadfastv1.SetTargetResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	t, err := n.findTarget(req.Name)
	if err != nil {
		return nil, err
	}
	if open := s.describe(t).Sessions; open > 0 {
		return nil, fault.New(fault.Busy, "target %s has %d sessions, which a change would end; log them out first (\"steadfast session list\")", t.Name, open)
	}
	if req.Alias != nil {
		t.Alias = *req.Alias
	}
	if req.Groups != nil {
		if t.Groups, err = n.groupTags(req.Groups.Tags); err != nil {
			return nil, err
		}
	}
	if err := n.state.PutTarget(t); err != nil {
		return nil, err
	}
	if err := n.withdraw(t.Name); err != nil {
		return nil, err
	}
	if err := n.offer(t); err != nil {
		return nil, err
	}
	n.publish("target-changed", "", "", "target %s was changed", t.Name)
	return &steadfastv1.SetTargetResponse{Target: s.describe(t)}, nil
}

// DeleteTarget implements the API's call.
func (s targetService) DeleteTarget(_ context.Context, req *steadfastv1.DeleteTargetRequest) (*steadfastv1.DeleteTargetResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	t, err := n.findTarget(req.Name)
	if err != nil {
		return nil, err
	}
	if mapped := n.state.Mappings(func(m control.Mapping) bool { return m.Target == t.Name }); len(mapped) > 0 {
		return nil, fault.New(fault.Busy, "volume %q is mapped to %s through target %s; unmap what it shows first (\"steadfast target show\")",
			mapped[0].VolumeName, mapped[0].Initiator, t.Name)
	}
	if err := n.state.DeleteTarget(t.Name); err != nil {
		return nil, err
	}
	if err := n.withdraw(t.Name); err != nil {
		return nil, err
	}
	n.publish("target-deleted", "", "", "target %s was deleted", t.Name)
	return &steadfastv1.DeleteTargetResponse{}, nil
}

// initiatorService implements the API's InitiatorService.
type initiatorService struct{ n *Node }

// findInitiator returns an initiator by its name in any case.
func (n *Node) findInitiator(name string) (control.Initiator, error) {
	if i, ok := n.state.Initiator(normal(name)); ok {
		return i, nil
	}
	if err := n.notOfMembers(name); err != nil {
		return control.Initiator{}, err
	}
	var names []string
	for _, i := range n.state.Initiators() {
		names = append(names, i.Name)
	}
	return control.Initiator{}, unknown("initiator", name, "initiator list", names)
}

// findInitiatorOrGroup returns the stored form of an initiator's or group's
// name.
func (n *Node) findInitiatorOrGroup(name string) (string, error) {
	if err := n.notOfMembers(name); err != nil {
		return "", err
	}
	if len(n.state.Resolve(normal(name))) > 0 {
		return normal(name), nil
	}
	var names []string
	for _, i := range n.state.Initiators() {
		names = append(names, i.Name)
		if i.Group != "" {
			names = append(names, i.Group)
		}
	}
	if nearest(name, names) == "" {
		return "", fault.New(fault.NotFound, "no initiator or group is called %q; add the initiator first with \"steadfast initiator add\"", name)
	}
	return "", unknown("initiator or group", name, "initiator list", names)
}

// describe returns an initiator as the API shows it.
func (s initiatorService) describe(i control.Initiator) *steadfastv1.Initiator {
	out := &steadfastv1.Initiator{
		Name: i.Name, Comment: i.Comment, Group: i.Group, ChapUser: i.ChapUser, MutualUser: i.MutualUser,
		Mappings: describeMappings(s.n.state.Mappings(func(m control.Mapping) bool {
			return m.Initiator == i.Name || i.Group != "" && m.Initiator == i.Group
		})),
	}
	for _, session := range s.n.targets.Sessions() {
		if session.Initiator == i.Name {
			out.Sessions++
		}
	}
	return out
}

// AddInitiator implements the API's call.
func (s initiatorService) AddInitiator(_ context.Context, req *steadfastv1.AddInitiatorRequest) (*steadfastv1.AddInitiatorResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	name, err := iscsi.NormalizeName(req.Name)
	if err != nil {
		return nil, err
	}
	if err := n.notOfMembers(name); err != nil {
		return nil, err
	}
	if _, ok := n.state.Initiator(name); ok {
		return nil, fault.New(fault.Exists, "initiator %s exists already; change it with \"steadfast initiator set\"", name)
	}
	i := control.Initiator{Name: name, Comment: req.Comment, Group: req.Group}
	if err := n.putInitiator(&i, req.Chap, req.Mutual); err != nil {
		return nil, err
	}
	n.publish("initiator-added", "", "", "initiator %s was added", name)
	if err := n.syncInitiator(name, i.Group); err != nil {
		return nil, err
	}
	return &steadfastv1.AddInitiatorResponse{Initiator: s.describe(i)}, nil
}

// putInitiator checks and stores an initiator with changes to its secrets; a
// nil Chap changes nothing. Under admin.
func (n *Node) putInitiator(i *control.Initiator, chap, mutual *steadfastv1.Chap) error {
	if i.Group != "" {
		if err := checkName("group", i.Group); err != nil {
			return err
		}
		if err := n.joinConflicts(*i); err != nil {
			return err
		}
	}
	old, _ := n.state.Initiator(i.Name)
	oldIn, oldMutual, err := n.state.Secrets(old)
	if err != nil && (chap == nil || mutual == nil && old.MutualUser != "") {
		return err // it would be stored unchecked
	}
	change := func(user *string, secret control.Secret, c *steadfastv1.Chap) (*iscsi.Credentials, control.SecretChange) {
		sc := control.SecretChange{}
		if c != nil {
			sc.Set = true
			*user, secret = c.User, nil
			if c.User != "" {
				sc.Secret, secret = c.Secret, c.Secret
			}
		}
		if *user == "" {
			return nil, sc
		}
		return &iscsi.Credentials{Name: *user, Secret: secret}, sc
	}
	var auth iscsi.Auth
	var in, out control.SecretChange
	auth.In, in = change(&i.ChapUser, oldIn, chap)
	auth.Mutual, out = change(&i.MutualUser, oldMutual, mutual)
	if err := auth.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "initiator "+i.Name)
	}
	if err := n.state.PutInitiator(*i, in, out); err != nil {
		return err
	}
	n.forgetAuth(i.Name)
	return nil
}

// joinConflicts checks what an initiator would see as a member of its group.
func (n *Node) joinConflicts(i control.Initiator) error {
	seen := map[string][]control.Mapping{}
	for _, m := range n.state.Mappings(func(m control.Mapping) bool { return m.Initiator == i.Name || m.Initiator == i.Group }) {
		seen[m.Target] = append(seen[m.Target], m)
	}
	for _, list := range seen {
		if err := control.Conflict(i.Name, list); err != nil {
			return fault.Wrap(fault.Exists, err, fmt.Sprintf("it cannot join group %q", i.Group))
		}
	}
	return nil
}

// ListInitiators implements the API's call.
func (s initiatorService) ListInitiators(context.Context, *steadfastv1.ListInitiatorsRequest) (*steadfastv1.ListInitiatorsResponse, error) {
	out := &steadfastv1.ListInitiatorsResponse{}
	for _, i := range s.n.state.Initiators() {
		out.Initiators = append(out.Initiators, s.describe(i))
	}
	return out, nil
}

// GetInitiator implements the API's call.
func (s initiatorService) GetInitiator(_ context.Context, req *steadfastv1.GetInitiatorRequest) (*steadfastv1.GetInitiatorResponse, error) {
	i, err := s.n.findInitiator(req.Name)
	if err != nil {
		return nil, err
	}
	return &steadfastv1.GetInitiatorResponse{Initiator: s.describe(i)}, nil
}

// SetInitiator implements the API's call.
func (s initiatorService) SetInitiator(_ context.Context, req *steadfastv1.SetInitiatorRequest) (*steadfastv1.SetInitiatorResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	i, err := n.findInitiator(req.Name)
	if err != nil {
		return nil, err
	}
	oldGroup := i.Group
	if req.Comment != nil {
		i.Comment = *req.Comment
	}
	if req.Group != nil && *req.Group != oldGroup {
		if err := n.lastOf(i); err != nil {
			return nil, err
		}
		i.Group = *req.Group
	}
	if err := n.putInitiator(&i, req.Chap, req.Mutual); err != nil {
		return nil, err
	}
	n.publish("initiator-changed", "", "", "initiator %s was changed", i.Name)
	if err := n.syncInitiator(i.Name, oldGroup, i.Group); err != nil {
		return nil, err
	}
	return &steadfastv1.SetInitiatorResponse{Initiator: s.describe(i)}, nil
}

// lastOf returns fault.Busy when an initiator is the last of a group that
// something is mapped to: the mapping would be to nobody.
func (n *Node) lastOf(i control.Initiator) error {
	if i.Group == "" || len(n.state.Members(i.Group)) > 1 {
		return nil
	}
	mapped := n.state.Mappings(func(m control.Mapping) bool { return m.Initiator == i.Group })
	if len(mapped) == 0 {
		return nil
	}
	return fault.New(fault.Busy, "%s is the last of group %q, which volume %q is mapped to; unmap that first", i.Name, i.Group, mapped[0].VolumeName)
}

// RemoveInitiator implements the API's call.
func (s initiatorService) RemoveInitiator(_ context.Context, req *steadfastv1.RemoveInitiatorRequest) (*steadfastv1.RemoveInitiatorResponse, error) {
	n := s.n
	unlock, err := n.change()
	if err != nil {
		return nil, err
	}
	defer unlock()
	i, err := n.findInitiator(req.Name)
	if err != nil {
		return nil, err
	}
	if mapped := n.state.Mappings(func(m control.Mapping) bool { return m.Initiator == i.Name }); len(mapped) > 0 {
		return nil, fault.New(fault.Busy, "volume %q is mapped to %s; unmap it first with \"steadfast volume unmap %s --initiator %s\"",
			mapped[0].VolumeName, i.Name, mapped[0].VolumeName, i.Name)
	}
	if err := n.lastOf(i); err != nil {
		return nil, err
	}
	if err := n.state.DeleteInitiator(i.Name); err != nil {
		return nil, err
	}
	n.forgetAuth(i.Name)
	n.publish("initiator-removed", "", "", "initiator %s was removed", i.Name)
	return &steadfastv1.RemoveInitiatorResponse{}, n.syncInitiator(i.Name, i.Group)
}

// noSession is the error for a session that is not there (any more).
func noSession(id int32) error {
	return fault.New(fault.NotFound, "session %d does not exist; see \"steadfast session list\"", id)
}
