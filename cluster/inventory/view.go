package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Prefixes of the inventory's keys.
const (
	datacenterPrefix = "datacenter/"
	clusterPrefix    = "cluster/"
	hostPrefix       = "host/"
	datastorePrefix  = "datastore/"
	machinePrefix    = "machine/"
	lifePrefix       = "life/"
	placementPrefix  = "placement/"
	// groupPrefix is that of resource groups, whose records are others'.
	groupPrefix = "group/"
	// numberKey counts the hosts that there ever were.
	numberKey = "count/host"
)

// View is the documents at one revision. It and what it holds is not to be
// changed by its readers.
type View struct {
	Datacenters map[string]*Datacenter
	Clusters    map[string]*Cluster
	Hosts       map[string]*Host
	Datastores  map[string]*Datastore
	Machines    map[string]*Machine
	Lives       map[string]*HostLife  // by host
	Placements  map[string]*Placement // by machine
	// Groups are the resource groups, of which only this much is known here.
	Groups map[string]Group
	// Unread are the keys of documents that cannot be read, ascending.
	Unread []string

	numbers uint16 // hosts that there ever were
}

// Group is what is known here of a resource group: its volumes' sizes in bytes
// by name.
type Group struct {
	Volumes map[string]int64
}

// Read reads the documents of an inventory. The View has what can be read; what
// cannot is named by it and by the error, which is fault.Stale when a newer
// program wrote it and fault.Corrupt for what no program writes.
func Read(entries map[string][]byte) (*View, error) {
	v := &View{
		Datacenters: map[string]*Datacenter{}, Clusters: map[string]*Cluster{}, Hosts: map[string]*Host{}, Datastores: map[string]*Datastore{},
		Machines: map[string]*Machine{}, Lives: map[string]*HostLife{}, Placements: map[string]*Placement{}, Groups: map[string]Group{},
	}
	var newer, broken []string
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		err := v.read(key, entries[key])
		switch {
		case err == nil:
			continue
		case fault.Is(err, fault.Stale):
			newer = append(newer, key)
		default:
			broken = append(broken, key)
		}
		v.Unread = append(v.Unread, key)
	}
	var errs []error
	if len(newer) > 0 {
		errs = append(errs, fault.New(fault.Stale, "the inventory's %v cannot be read: a newer program wrote them; upgrade this node", newer))
	}
	if len(broken) > 0 {
		errs = append(errs, fault.New(fault.Corrupt, "the inventory's %v cannot be read: no version of this program writes such", broken))
	}
	return v, errors.Join(errs...)
}

// PlacementOf reads a machine's placement and nothing else; nil: it has none. Fails as Read
// does.
func PlacementOf(entries map[string][]byte, machine string) (*Placement, error) {
	value, ok := entries[placementPrefix+machine]
	if !ok {
		return nil, nil
	}
	v := &View{Placements: map[string]*Placement{}}
	err := v.read(placementPrefix+machine, value)
	return v.Placements[machine], fault.Wrap(fault.KindOf(err), err, "the placement of the machine "+machine)
}

// read reads one entry, if it is one of ours.
func (v *View) read(key string, value []byte) error {
	prefix, name, _ := strings.Cut(key, "/")
	switch prefix + "/" {
	case datacenterPrefix:
		return decode(v.Datacenters, name, value, func(d *Datacenter) string { return d.Name })
	case clusterPrefix:
		return decode(v.Clusters, name, value, func(d *Cluster) string { return d.Name })
	case hostPrefix:
		return decode(v.Hosts, name, value, func(d *Host) string { return d.Name })
	case datastorePrefix:
		return decode(v.Datastores, name, value, func(d *Datastore) string { return d.Name })
	case machinePrefix:
		return decode(v.Machines, name, value, func(d *Machine) string { return d.Name })
	case lifePrefix:
		return decode(v.Lives, name, value, func(d *HostLife) string { return d.Host })
	case placementPrefix:
		return decode(v.Placements, name, value, func(d *Placement) string { return d.Machine })
	case groupPrefix:
		return v.readGroup(name, value)
	}
	if key == numberKey {
		n, err := strconv.ParseUint(string(value), 10, 16)
		v.numbers = uint16(n)
		return fault.Wrap(fault.Corrupt, err, "the count of hosts")
	}
	return nil // another package's
}

// document is what all documents are.
type document interface{ doc() *Doc }

// decode reads a document into its place. A field that is not known is as a
// version that is not known: to write the document again would drop it.
func decode[T any](into map[string]*T, name string, value []byte, named func(*T) string) error {
	var head Doc
	if err := json.Unmarshal(value, &head); err != nil {
		return fault.Wrap(fault.Corrupt, err, "a document")
	}
	if head.Version > version {
		return fault.New(fault.Stale, "a document of version %d, and this program knows %d", head.Version, version)
	}
	d := new(T)
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return fault.Wrap(fault.Stale, err, "a document")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || head.Version == 0 || head.Revision == 0 || named(d) != name || !validName(name) {
		return fault.New(fault.Corrupt, "a document that is none")
	}
	into[name] = d
	return nil
}

// readGroup reads as much of a resource group's record as is known here.
func (v *View) readGroup(name string, value []byte) error {
	var g struct {
		Volumes []struct {
			Name string `json:"name"`
			Size int64  `json:"size"`
		} `json:"volumes"`
	}
	if err := json.Unmarshal(value, &g); err != nil {
		return fault.Wrap(fault.Stale, err, "a resource group's record")
	}
	group := Group{Volumes: map[string]int64{}}
	for _, vol := range g.Volumes {
		group.Volumes[vol.Name] = vol.Size
	}
	v.Groups[name] = group
	return nil
}

// edit returns a document as a change of the inventory; old is what it takes the
// place of, nil for none.
func edit(key string, d, old document) (quorum.Edit, error) {
	head := d.doc()
	head.Version, head.Revision = version, 1
	if old != nil {
		head.Revision = old.doc().Revision + 1
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a command line keeps its length
	if err := enc.Encode(d); err != nil {
		return quorum.Edit{}, fault.Wrap(fault.Internal, err, "a document of the inventory")
	}
	return quorum.Edit{Key: key, Value: bytes.TrimSuffix(b.Bytes(), []byte("\n"))}, nil
}

// one returns the only edit of a change.
func one(e quorum.Edit, err error) ([]quorum.Edit, error) {
	if err != nil {
		return nil, err
	}
	return []quorum.Edit{e}, nil
}

// readable fails with fault.Stale when a document of this key is there and
// cannot be read: nothing is made in its place, and what refers to it waits.
func (v *View) readable(key string) error {
	if _, found := slices.BinarySearch(v.Unread, key); found {
		return fault.New(fault.Stale, "the inventory's %q cannot be read by this program; upgrade this node, or ask another", key)
	}
	return nil
}

// complete fails with fault.Stale when any document under the prefixes cannot be
// read: it might refer to what is to be deleted or have what is to be given.
func (v *View) complete(prefixes ...string) error {
	for _, key := range v.Unread {
		for _, p := range prefixes {
			if strings.HasPrefix(key, p) {
				return v.readable(key)
			}
		}
	}
	return nil
}

// find returns a document by its name.
func find[T any](v *View, in map[string]*T, prefix, name string) (*T, error) {
	if err := v.readable(prefix + name); err != nil {
		return nil, err
	}
	d, ok := in[name]
	if !ok {
		kind := strings.TrimSuffix(prefix, "/")
		return nil, fault.New(fault.NotFound, "%s %q does not exist; see \"steadfast %s list\"", kind, name, verb(kind))
	}
	return d, nil
}

// fresh fails unless a document of this name can be made.
func fresh[T any](v *View, in map[string]*T, prefix, name string, most int) error {
	kind := strings.TrimSuffix(prefix, "/")
	if err := checkName(kind, name); err != nil {
		return err
	}
	if err := v.readable(prefix + name); err != nil {
		return err
	}
	switch _, ok := in[name]; {
	case ok:
		return fault.New(fault.Exists, "%s %q exists already; choose another name", kind, name)
	case len(in) >= most:
		return fault.New(fault.Limit, "there are %d documents of the kind %s already, and there can be no more", len(in), kind)
	}
	return nil
}

// verb is the command line's word for a kind.
func verb(kind string) string {
	if kind == "machine" {
		return "vm"
	}
	return kind
}

// validName tells what anything can be called: small letters, digits, dots and
// dashes, at most 63, of which the first is a letter or a digit.
func validName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return name != "" && len(name) <= 63
}

func checkName(kind, name string) error {
	if !validName(name) {
		return fault.New(fault.Invalid, "a %s cannot be called %.100q: small letters, digits, dots and dashes, at most 63", kind, name)
	}
	return nil
}

// UsedBy returns the machine that has a volume of a group as its home or as a
// disk; a volume that is used is not to be deleted. Fails with
// fault.Stale when not all machines can be read.
func (v *View) UsedBy(group, volume string) (machine string, used bool, err error) {
	if err := v.complete(datastorePrefix, machinePrefix); err != nil {
		return "", false, err
	}
	for _, name := range slices.Sorted(maps.Keys(v.Machines)) {
		m := v.Machines[name]
		d := v.Datastores[m.Datastore]
		if d != nil && d.Group == group && slices.Contains(m.Volumes(), volume) {
			return name, true, nil
		}
	}
	return "", false, nil
}

// DatastoreOf returns the datastore that a group is; such a group is not to be
// deleted. Fails as UsedBy does.
func (v *View) DatastoreOf(group string) (datastore string, is bool, err error) {
	if err := v.complete(datastorePrefix); err != nil {
		return "", false, err
	}
	for _, name := range slices.Sorted(maps.Keys(v.Datastores)) {
		if v.Datastores[name].Group == group {
			return name, true, nil
		}
	}
	return "", false, nil
}
