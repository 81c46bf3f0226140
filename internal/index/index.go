// Package index has a map for data that exists in generations: each generation is a copy of
// the one before, with few changes.
package index

import (
	"cmp"
	"iter"
	"sync"

	"github.com/tidwall/btree"
)

// Map is a map with ordered keys. Copy takes the same time whatever the size, because copies
// share what they have in common. Like Go's own maps, a Map refers to its content: assigning
// it makes no copy. The zero value is empty, and may be changed.
//
// Set and Delete need exclusive use of a Map. Everything else may run concurrently, also
// with changes of copies.
type Map[K cmp.Ordered, V any] struct{ tree *tree[K, V] }

type tree[K cmp.Ordered, V any] struct {
	mu sync.Mutex // held while the tree is copied, which marks its nodes as shared
	btree.Map[K, V]
}

// Get returns the value for a key; V's zero value if there is none.
func (m Map[K, V]) Get(key K) (v V) {
	if m.tree != nil {
		v, _ = m.tree.Get(key)
	}
	return v
}

// Has reports whether there is a value for a key.
func (m Map[K, V]) Has(key K) bool {
	if m.tree == nil {
		return false
	}
	_, has := m.tree.Get(key)
	return has
}

// Len returns the number of keys.
func (m Map[K, V]) Len() int {
	if m.tree == nil {
		return 0
	}
	return m.tree.Len()
}

// All iterates over the keys and values, in the order of the keys.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.tree != nil {
			m.tree.Scan(yield)
		}
	}
}

// Values iterates over the values, in the order of their keys.
func (m Map[K, V]) Values() iter.Seq[V] {
	return func(yield func(V) bool) {
		m.All()(func(_ K, v V) bool { return yield(v) })
	}
}

// Before returns the last key before key, and its value.
func (m Map[K, V]) Before(key K) (k K, v V, found bool) {
	if m.tree != nil {
		m.tree.Descend(key, func(at K, value V) bool {
			if at < key {
				k, v, found = at, value, true
			}
			return !found
		})
	}
	return k, v, found
}

// After returns the first key after key, and its value.
func (m Map[K, V]) After(key K) (k K, v V, found bool) {
	if m.tree != nil {
		m.tree.Ascend(key, func(at K, value V) bool {
			if at > key {
				k, v, found = at, value, true
			}
			return !found
		})
	}
	return k, v, found
}

// Set sets the value for a key.
func (m *Map[K, V]) Set(key K, v V) {
	if m.tree == nil {
		m.tree = &tree[K, V]{}
	}
	m.tree.Set(key, v)
}

// Delete removes a key.
func (m *Map[K, V]) Delete(key K) {
	if m.tree != nil {
		m.tree.Delete(key)
	}
}

// Copy returns a copy. Changes of either do not show in the other.
func (m Map[K, V]) Copy() Map[K, V] {
	if m.tree == nil {
		return Map[K, V]{}
	}
	m.tree.mu.Lock()
	defer m.tree.mu.Unlock()
	return Map[K, V]{&tree[K, V]{Map: *m.tree.Map.Copy()}}
}
