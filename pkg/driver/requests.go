package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkName checks the name of a volume or snapshot. Errors: INVALID_ARGUMENT.
func checkName(name string) error {
	if name == "" || len(name) > handle.Max {
		return invalid("a name must have 1 to %d bytes; %q has %d", handle.Max, name, len(name))
	}
	return nil
}

// capacityRange returns the sizes that a request asks for; 0 if unspecified.
// Errors: INVALID_ARGUMENT if a size is negative; OUT_OF_RANGE if the range is
// empty.
func capacityRange(r *csi.CapacityRange) (required, limit size.Bytes, err error) {
	if r.GetRequiredBytes() < 0 || r.GetLimitBytes() < 0 {
		return 0, 0, invalid("the capacity range is negative: %d to %d bytes", r.GetRequiredBytes(), r.GetLimitBytes())
	}
	required, limit = size.Bytes(r.GetRequiredBytes()), size.Bytes(r.GetLimitBytes())
	if limit != 0 && limit < required {
		return 0, 0, outOfRange("the capacity range is empty: at least %d, at most %d bytes", required, limit)
	}
	return required, limit, nil
}
