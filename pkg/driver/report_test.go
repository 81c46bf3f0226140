package driver

import (
	"context"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// A fault is reported once while it lasts, and again only if it was gone for
// repeatAfter.
func TestReportNew_repeated(t *testing.T) {
	d, err := New(Options{NodeName: "n1", KubeletDir: t.TempDir(), Pools: closedPools(t)})
	if err != nil {
		t.Fatal(err)
	}
	var told []reports.Happening
	known, now := map[concern]time.Time{}, time.Now()
	look := func(after time.Duration) {
		now = now.Add(after)
		d.reportNew(t.Context(), known, now, func(_ context.Context, h reports.Happening) { told = append(told, h) })
	}
	look(0)
	if len(told) != 1 || told[0].Kind != roleapi.Happening_KIND_POOL || told[0].ID != "fast" || told[0].Reason != "PoolUnavailable" || !told[0].Warning || told[0].Lasting {
		t.Fatalf("%+v", told)
	}
	for range 3 {
		look(repeatAfter - time.Second)
	}
	if len(told) != 1 {
		t.Errorf("reported again while it lasts: %+v", told)
	}
	// The fault goes away and comes back: it is reported only if that took long.
	pools := d.pools
	d.pools = &pool.Set{}
	look(repeatAfter / 2)
	d.pools = pools
	if look(time.Second); len(told) != 1 {
		t.Errorf("reported again too soon: %+v", told)
	}
	d.pools = &pool.Set{}
	look(repeatAfter)
	d.pools = pools
	if look(time.Second); len(told) != 2 {
		t.Errorf("not reported again: %+v", told)
	}
}
