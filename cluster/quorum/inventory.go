package quorum

import (
	"maps"

	"steadfast/fault"
)

// Bounds of the inventory. It is configuration, not data: every member has all
// of it in memory, and a snapshot of the log carries all of it.
const (
	InventoryKeyBytesMax   = 256
	InventoryValueBytesMax = 256 << 10
	InventoryEntriesMax    = 4096
	InventoryBytesMax      = 8 << 20 // keys and values together
)

// Inventory is what the cluster shall have: small documents by key, whose form is
// the affair of those who write them. The zero Revision is before any edit.
type Inventory struct {
	Revision Revision `json:"rev"`
	// Entries and their values are never changed in place: an edit makes another
	// map, and states share what was not edited.
	Entries map[string][]byte `json:"entries"`
}

// Edit sets one key, or deletes it when the value is empty. A key is 1 to
// InventoryKeyBytesMax bytes of printable ASCII, without spaces: 0x21 to 0x7e.
type Edit struct {
	Key   string `json:"key"`
	Value []byte `json:"value,omitempty"`
}

func newInventory() Inventory { return Inventory{Entries: map[string][]byte{}} }

// edit does all of a command's edits, or none.
func (s *State) edit(c Command) error {
	switch {
	case c.Revision != s.Inventory.Revision:
		return fault.New(fault.Stale, "%s for revision %d of the inventory, which is at %d", c.Kind, c.Revision, s.Inventory.Revision)
	case len(c.Edits) == 0:
		return fault.New(fault.Invalid, "%s of %s says nothing", c.Kind, c.By.Member)
	}
	next := Inventory{Revision: s.Inventory.Revision + 1, Entries: maps.Clone(s.Inventory.Entries)}
	seen := make(map[string]bool, len(c.Edits))
	for _, e := range c.Edits {
		switch {
		case !validKey(e.Key):
			return badKey(e.Key)
		case seen[e.Key]:
			return fault.New(fault.Invalid, "the key %q is edited twice", e.Key)
		case len(e.Value) > InventoryValueBytesMax:
			return fault.New(fault.Limit, "the value of %q has %d bytes, the bound is %d", e.Key, len(e.Value), InventoryValueBytesMax)
		}
		seen[e.Key] = true
		if len(e.Value) == 0 {
			delete(next.Entries, e.Key)
			continue
		}
		next.Entries[e.Key] = e.Value
	}
	if err := next.bounded(); err != nil {
		return err
	}
	s.Inventory = next
	return nil
}

// bounded holds the inventory to its bounds as a whole.
func (i Inventory) bounded() error {
	if len(i.Entries) > InventoryEntriesMax {
		return fault.New(fault.Limit, "the inventory would have %d entries, the bound is %d", len(i.Entries), InventoryEntriesMax)
	}
	total := 0
	for k, v := range i.Entries {
		total += len(k) + len(v)
	}
	if total > InventoryBytesMax {
		return fault.New(fault.Limit, "the inventory would have %d bytes, the bound is %d", total, InventoryBytesMax)
	}
	return nil
}

// check holds what must be so of an inventory that was read.
func (i Inventory) check() error {
	if i.Entries == nil {
		return fault.New(fault.Corrupt, "the quorum's snapshot lacks its inventory")
	}
	for k, v := range i.Entries {
		if !validKey(k) || len(v) == 0 || len(v) > InventoryValueBytesMax {
			return fault.New(fault.Corrupt, "the quorum's snapshot contradicts itself: the inventory's %.300q of %d bytes", k, len(v))
		}
	}
	return fault.Wrap(fault.Corrupt, i.bounded(), "the quorum's snapshot")
}

func validKey(k string) bool {
	for i := range len(k) {
		if k[i] < 0x21 || k[i] > 0x7e {
			return false
		}
	}
	return len(k) >= 1 && len(k) <= InventoryKeyBytesMax
}

func badKey(k string) error {
	return fault.New(fault.Invalid, "%.300q is no key of the inventory: 1 to %d bytes of printable ASCII, no spaces", k, InventoryKeyBytesMax)
}
