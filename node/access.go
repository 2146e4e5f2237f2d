package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/control"
	"steadfast/san/store"
	"steadfast/san/target"
)

// logoutPatience is how long initiators of a target that goes away are waited
// for before their sessions are dropped.
const logoutPatience = 5 * time.Second

// openVolume is a volume that is mapped and therefore open.
type openVolume struct {
	id     string // hex
	pool   *pool
	volume *store.Volume
}

// showPool opens the mapped volumes of a pool that was just opened and shows
// them to their initiators. Under admin.
func (n *Node) showPool(p *pool, s *store.Pool) error {
	names := map[string]string{}
	for _, v := range s.Volumes() {
		names[hexID(v.ID)] = v.Name
	}
	targets := map[string]bool{}
	for _, m := range n.state.Mappings(func(m control.Mapping) bool { return m.Pool == p.id }) {
		name, ok := names[m.Volume]
		if !ok {
			// The drives came back from an older state than ours: to serve
			// the rest is better than to serve nothing.
			n.events.publish(&steadfastv1.Event{
				Severity: severityError, Kind: "volume-missing", Pool: p.name, Volume: m.VolumeName,
				Text: fmt.Sprintf("volume %q is mapped to %s and not in pool %q; unmap it if it is gone for good", m.VolumeName, m.Initiator, p.name),
			})
			continue
		}
		if err := n.show(p, s, m.Volume, name); err != nil {
			return err
		}
		targets[m.Target] = true
	}
	for t := range targets {
		if err := n.syncTarget(t); err != nil {
			return err
		}
	}
	return nil
}

// show opens a volume and makes it a logical unit, if it is not one already.
// Under admin.
func (n *Node) show(p *pool, s *store.Pool, id, name string) error {
	if n.volumeOpen(id) != nil {
		return nil
	}
	v, err := s.OpenVolume(name)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("cannot open volume %q", name))
	}
	if err := n.units.add(s, v); err != nil {
		return errors.Join(err, v.Close())
	}
	n.mu.Lock()
	n.open[id] = &openVolume{id, p, v}
	n.mu.Unlock()
	return nil
}

// hide takes a volume's logical unit away and closes it. It returns when no
// task of the unit is left. Under admin.
func (n *Node) hide(id string) error {
	v := n.volumeOpen(id)
	if v == nil {
		return nil
	}
	n.mu.Lock()
	delete(n.open, id)
	n.mu.Unlock()
	return errors.Join(n.units.remove(id), v.volume.Close())
}

func (n *Node) volumeOpen(id string) *openVolume {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.open[id]
}

// hidePool closes every open volume of a pool. Under admin, or while stopping.
func (n *Node) hidePool(p *pool) error {
	n.mu.RLock()
	var ids []string
	for id, v := range n.open {
		if v.pool == p {
			ids = append(ids, id)
		}
	}
	n.mu.RUnlock()
	var err error
	for _, id := range ids {
		err = errors.Join(err, n.hide(id))
	}
	return err
}

// offer makes a target known to initiators, with whom it admits. Under admin,
// or at the start.
func (n *Node) offer(t control.Target) error {
	view := n.viewOf(t.Name)
	if err := n.units.setView(t.Name, view); err != nil {
		return err
	}
	groups := t.Groups
	if len(groups) == 0 { // all of the node's own; not the aliases of groups
		for _, p := range n.cfg.Portals {
			groups = append(groups, p.Group)
		}
	}
	return n.targets.AddTarget(target.Target{Name: t.Name, Alias: t.Alias, Groups: groups, Access: n.accessOf(view)})
}

// withdraw takes a target away; its sessions are asked to log out first.
// Under admin.
func (n *Node) withdraw(name string) error {
	ctx, cancel := context.WithTimeout(n.ctx, logoutPatience)
	defer cancel()
	err := n.targets.RemoveTarget(ctx, name)
	return errors.Join(err, n.units.RemoveTarget(name))
}

// syncTarget brings what initiators see through a target, and whom it admits,
// in line with the control state. Under admin.
//
// Units go first, so that whoever is admitted finds its volumes. One whose last
// mapping went is dropped right after; in between it sees a unit that does not
// exist, which is the truth. The sessions of initiators that were replaced, each
// by another of its name, are dropped in any case.
func (n *Node) syncTarget(name string, replaced ...string) error {
	view := n.viewOf(name)
	access := n.accessOf(view)
	var err error
	if len(replaced) > 0 {
		others := slices.DeleteFunc(slices.Clone(access), func(a target.Access) bool { return slices.Contains(replaced, a.Initiator) })
		err = n.targets.SetAccess(name, others)
	}
	return errors.Join(err, n.units.setView(name, view), n.targets.SetAccess(name, access))
}

// accessOf lists who is admitted, and what each must prove. An initiator whose
// secret cannot be read is left out: it must not get in without.
func (n *Node) accessOf(view map[string][]control.Mapping) []target.Access {
	list := make([]target.Access, 0, len(view))
	for name := range view {
		auth, err := n.authOf(name)
		if err != nil {
			n.events.publish(&steadfastv1.Event{Severity: severityError, Kind: "initiator-refused", Text: err.Error()})
			continue
		}
		list = append(list, target.Access{Initiator: name, Auth: auth})
	}
	return list
}

// authOf returns what an initiator must prove.
func (n *Node) authOf(name string) (iscsi.Auth, error) {
	if auth, is, err := n.memberAuthOf(name); is {
		return auth, err
	}
	n.mu.RLock()
	auth, ok := n.auths[name]
	n.mu.RUnlock()
	if ok {
		return auth, nil
	}
	i, ok := n.state.Initiator(name)
	if !ok {
		return iscsi.Auth{}, fault.New(fault.NotFound, "initiator %s does not exist", name)
	}
	chap, mutual, err := n.state.Secrets(i)
	if err != nil {
		return iscsi.Auth{}, err
	}
	if i.ChapUser != "" {
		auth.In = &iscsi.Credentials{Name: i.ChapUser, Secret: chap}
	}
	if i.MutualUser != "" {
		auth.Mutual = &iscsi.Credentials{Name: i.MutualUser, Secret: mutual}
	}
	if err := auth.Check(); err != nil {
		return iscsi.Auth{}, fault.Wrap(fault.Invalid, err, "initiator "+name+" is not admitted")
	}
	n.mu.Lock()
	n.auths[name] = auth
	n.mu.Unlock()
	return auth, nil
}

// forgetAuths makes the next authOf read every secret again.
func (n *Node) forgetAuths() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.auths)
}

// forgetAuth makes the next authOf read the secrets again.
func (n *Node) forgetAuth(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.auths, name)
}

// syncInitiator does syncTarget for every target that shows something to an
// initiator, or did through the group named. Under admin.
func (n *Node) syncInitiator(name string, groups ...string) error {
	var err error
	done := map[string]bool{}
	for _, m := range n.state.Mappings(nil) {
		if done[m.Target] || m.Initiator != name && !slices.Contains(groups, m.Initiator) {
			continue
		}
		done[m.Target] = true
		err = errors.Join(err, n.syncTarget(m.Target))
	}
	return err
}

// sessionsThrough returns the sessions that see a mapping's volume.
func (n *Node) sessionsThrough(m control.Mapping) []target.Session {
	who := n.state.Resolve(m.Initiator)
	all := n.targets.Sessions()
	return slices.DeleteFunc(all, func(s target.Session) bool {
		return s.Target != m.Target || !slices.Contains(who, s.Initiator) && !slices.Contains(who, control.Anyone)
	})
}
