package mirror

import "slices"

// ranges is a set of blocks: disjoint runs, ascending, neighbours joined.
type ranges []Range

func compareRange(a, b Range) int {
	switch {
	case a.Volume != b.Volume:
		return int(a.Volume) - int(b.Volume)
	case a.Block < b.Block:
		return -1
	case a.Block > b.Block:
		return 1
	}
	return 0
}

// add joins a run to the set.
func (s *ranges) add(r Range) {
	if r.Count == 0 {
		return
	}
	list := *s
	i, _ := slices.BinarySearchFunc(list, r, compareRange)
	if i > 0 && list[i-1].Volume == r.Volume && list[i-1].Block+list[i-1].Count >= r.Block {
		i--
	}
	k := i
	end := r.Block + r.Count
	for k < len(list) && list[k].Volume == r.Volume && list[k].Block <= end {
		r.Block = min(r.Block, list[k].Block)
		end = max(end, list[k].Block+list[k].Count)
		k++
	}
	r.Count = end - r.Block
	*s = slices.Replace(list, i, k, r)
}

// pop removes a run of at most n blocks, the first there is.
func (s *ranges) pop(n uint64) Range {
	r := (*s)[0]
	if r.Count > n {
		(*s)[0].Block += n
		(*s)[0].Count -= n
		r.Count = n
		return r
	}
	*s = slices.Delete(*s, 0, 1)
	return r
}

// blocks counts the blocks of the set.
func (s ranges) blocks() (n uint64) {
	for _, r := range s {
		n += r.Count
	}
	return n
}
