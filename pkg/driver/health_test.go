package driver

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// Conditions of the same severity and reason are joined into one.
func TestMerge_severityAndReason(t *testing.T) {
	got := merge([]pool.Condition{
		{Severity: pool.Degraded, Reason: "SnapshotLost", Message: "a"},
		{Severity: pool.Degraded, Reason: "SnapshotSpaceLow", Message: "b"},
		{Severity: pool.Degraded, Reason: "SnapshotLost", Message: "c"},
		{Severity: pool.DataLoss, Reason: "SnapshotLost", Message: "d"},
	})
	if len(got) != 3 || got[0].Message != "a; c" || got[2].Message != "d" {
		t.Errorf("%+v", got)
	}
}
