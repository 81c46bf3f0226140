package driver

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// A node without pools has no place for a new volume, but another node may have
// one.
func TestPlace_withoutPools(t *testing.T) {
	d := &Driver{node: "n1", pools: &pool.Set{}}
	for _, class := range []parameters{{}, {pool: "fast"}, {transient: true}} {
		if _, err := d.place(class, nil); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%+v: %v", class, err)
		}
	}
}
