package catalog

import (
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog/catalogtest"
)

// rollbackGroup returns a view of catalogtest.Group: the volume base with the snapshots old
// and new, and the volume bare.
func rollbackGroup(t *testing.T) *View {
	t.Helper()
	v := NewView(catalogtest.Group(t), nil)
	if len(v.Strange) > 0 || v.Volumes.Len() != 2 || v.Snapshots.Len() != 2 {
		t.Fatalf("%d volumes, %d snapshots, %v", v.Volumes.Len(), v.Snapshots.Len(), v.Strange)
	}
	return v
}
