package main

import (
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The output says what was rolled back, what is lost, and what to do next.
func TestRollback_text(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	done := pool.RolledBack{
		Volume:   pool.Volume{Name: "pvc-1", LV: "base", Size: size.GiB},
		Snapshot: pool.Snapshot{Name: "monday", LV: "snap1", Created: at},
		Newest:   pool.Snapshot{Name: "friday", LV: "snap5", Created: at.Add(time.Hour)},
		Former:   "former-base",
	}
	for _, c := range []struct {
		what   string
		change func()
		dryRun bool
		want   string
	}{
		{"done", func() {}, false, `
volume pvc-1 (fast/base, 1GiB) was rolled back to snapshot monday, taken 2026-11-22T10:00:00Z
everything written after the newest snapshot friday, taken 2026-11-22T11:00:00Z, is lost
logical volume former-base keeps the former blocks for the snapshots
the volume can be used; the driver copies it in the background (csi-dmsnap volumes shows how far)
`},
		{"no newer snapshot, dry run", func() { done.Newest, done.Former = pool.Snapshot{}, "" }, true, `
volume pvc-1 (fast/base, 1GiB) would be rolled back to snapshot monday, taken 2026-11-22T10:00:00Z
everything written after the last rollback would be lost, because no snapshot was taken since

Nothing was changed. Use --yes to roll the volume back.
`},
	} {
		c.change()
		if got := "\n" + newRollback("fast", done, c.dryRun).text(); got != c.want {
			t.Errorf("%s:%s\nwant:%s", c.what, got, c.want)
		}
	}
}
