package main

import (
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

func TestRollbackText(t *testing.T) {
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
volume pvc-1 (fast/base, 1GiB) is what it was at snapshot monday, taken 2026-11-22T10:00:00Z
what was written to it after its newest snapshot friday, taken 2026-11-22T11:00:00Z, is lost
former-base keeps the blocks of what it was, for its snapshots
it can be used; the driver copies it in the background, see: csi-dmsnap volumes
`},
		{"nothing of it was kept, dry run", func() { done.Newest, done.Former = pool.Snapshot{}, "" }, true, `
volume pvc-1 (fast/base, 1GiB) would be what it was at snapshot monday, taken 2026-11-22T10:00:00Z
what was written to it is in no snapshot and would be lost

Nothing was changed. Give --yes to do it.
`},
	} {
		c.change()
		if got := "\n" + newRollback("fast", done, c.dryRun).text(); got != c.want {
			t.Errorf("%s:%s\nwant:%s", c.what, got, c.want)
		}
	}
}
