package driver

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Negative sizes and empty ranges are refused, and 0 is unspecified.
func TestCapacityRange_bounds(t *testing.T) {
	for _, c := range []struct {
		required, limit int64
		want            codes.Code
	}{
		{0, 0, codes.OK}, {1, 0, codes.OK}, {0, 1, codes.OK}, {5, 5, codes.OK},
		{-1, 0, codes.InvalidArgument}, {0, -1, codes.InvalidArgument}, {6, 5, codes.OutOfRange},
	} {
		required, limit, err := capacityRange(&csi.CapacityRange{RequiredBytes: c.required, LimitBytes: c.limit})
		if status.Code(err) != c.want || err == nil && (int64(required) != c.required || int64(limit) != c.limit) {
			t.Errorf("%+v: %d, %d, %v", c, required, limit, err)
		}
	}
	if required, limit, err := capacityRange(nil); required != 0 || limit != 0 || err != nil {
		t.Errorf("no range: %d, %d, %v", required, limit, err)
	}
}
