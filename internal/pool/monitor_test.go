package pool

import (
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// TestMonitor_hangingStores: the monitor watches a store in time while the kernel does
// not answer for many other stores, and asks about each of those only once.
func TestMonitor_hangingStores(t *testing.T) {
	p := newPool(t.Context(), Config{Name: "a"}.withDefaults(), Options{})
	v := rollbackGroup(t)
	p.current.Store(v)
	hang, asked := make(chan bool), make(chan string, 1000)
	m := monitor{pool: p, stores: map[lvm2.ID]*filling{}, asked: map[lvm2.ID]time.Time{}, answers: make(chan answer, asksAtOnce), seen: v, surveyed: time.Now().Add(time.Hour),
		status: func(device string) (dm.SnapshotStatus, error) {
			asked <- device
			if device != "good" {
				<-hang
			}
			return dm.SnapshotStatus{Used: 10, Total: 100}, nil
		}}
	watch := func(name string) {
		m.stores[lvm2.ID(name)] = &filling{Store: &catalog.Store{LV: &lvm2.LV{ID: lvm2.ID(name)}}, snap: device{name: name}, most: 100}
	}
	for i := range 3 * asksAtOnce {
		watch("bad" + string(rune('a'+i)))
	}
	watch("good")
	times := map[string]int{}
	for end := time.Now().Add(10 * time.Second); times["good"] < 3; {
		if time.Now().After(end) {
			t.Fatalf("asked %v", times)
		}
		next := m.look(t.Context(), time.Now())
		select {
		case a := <-m.answers:
			m.take(a)
		case <-time.After(min(time.Until(next), slowestLook)):
		}
		for len(asked) > 0 {
			times[<-asked]++
		}
	}
	for device, n := range times {
		if device != "good" && n > 1 {
			t.Errorf("%s was asked about %d times", device, n)
		}
	}
	close(hang)
}
