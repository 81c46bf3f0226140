package index

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// TestMap_generations: each generation keeps its content, whatever is changed in generations
// that were copied from it, and while others copy it too.
func TestMap_generations(t *testing.T) {
	type generation struct {
		m    Map[int, int]
		want map[int]int
	}
	random := rand.New(rand.NewPCG(1, 2))
	all := []generation{{want: map[int]int{}}}
	for range 300 {
		from := all[random.IntN(len(all))]
		var others sync.WaitGroup
		others.Go(func() { from.m.Copy() })
		next := generation{from.m.Copy(), maps.Clone(from.want)}
		others.Wait()
		for range random.IntN(200) {
			k := random.IntN(1000)
			if random.IntN(3) == 0 {
				next.m.Delete(k)
				delete(next.want, k)
			} else {
				v := random.Int()
				next.m.Set(k, v)
				next.want[k] = v
			}
		}
		all = append(all, next)
	}
	for i, g := range all {
		if got := maps.Collect(g.m.All()); !maps.Equal(got, g.want) || g.m.Len() != len(g.want) {
			t.Fatalf("generation %d has changed: %d keys, want %d", i, len(got), len(g.want))
		}
		keys := slices.Sorted(maps.Keys(g.want))
		for n, k := range keys {
			if v := g.m.Get(k); v != g.want[k] || !g.m.Has(k) {
				t.Fatalf("generation %d: key %d: %d, want %d", i, k, v, g.want[k])
			}
			before, _, some := g.m.Before(k)
			if some != (n > 0) || some && before != keys[n-1] {
				t.Fatalf("generation %d: %d is before %d", i, before, k)
			}
			after, v, more := g.m.After(k)
			if more != (n+1 < len(keys)) || more && (after != keys[n+1] || v != g.want[after]) {
				t.Fatalf("generation %d: %d is after %d", i, after, k)
			}
		}
		if g.m.Has(-1) || g.m.Get(-1) != 0 {
			t.Fatalf("generation %d has a key that was never set", i)
		}
	}
}
