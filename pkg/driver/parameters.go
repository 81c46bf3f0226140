package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// parameterPool names the pool in the parameters of a storage class.
const parameterPool = "pool"

// parameters are what a storage class asks for. All calls that have some read
// them by parseParameters, so that none takes what another one refuses.
type parameters struct {
	pool       string // "" leaves it open
	transient  bool
	modeChange bool   // a raw block volume's content may be mounted
	claim      string // for which the volume is; "" if it does not come from Kubernetes
}

// parseParameters reads the parameters of a storage class. Errors: INVALID_ARGUMENT.
func parseParameters(m map[string]string) (p parameters, err error) {
	// The file system is in the volume capability. csi-provisioner puts it there,
	// and reads this key in any case.
	others := maps.Clone(m)
	maps.DeleteFunc(others, func(key, _ string) bool { return strings.EqualFold(key, "fstype") })
	if err := checkParameters(others, parameterPool, callmeta.ParameterTransient, callmeta.ParameterModeChange); err != nil {
		return parameters{}, err
	}
	p.pool, p.claim = m[parameterPool], m[callmeta.ParameterClaimName]
	if p.transient, err = callmeta.Transient(m); err != nil {
		return parameters{}, invalid("%v", err)
	}
	if p.modeChange, err = callmeta.ModeChange(m); err != nil {
		return parameters{}, invalid("%v", err)
	}
	return p, nil
}

// noMutable refuses the parameters of a VolumeAttributesClass.
func noMutable(parameters map[string]string) error {
	if len(parameters) > 0 {
		return invalid("there are no mutable parameters")
	}
	return nil
}

// checkParameters refuses what this driver does not understand. Keys of the
// sidecars pass.
func checkParameters(parameters map[string]string, known ...string) error {
	for key := range parameters {
		if !slices.Contains(known, key) && !strings.HasPrefix(key, "csi.storage.k8s.io/") {
			return invalid("unknown parameter %q", key)
		}
	}
	return nil
}

// mismatch says what of the parameters a volume in that pool is not; empty if nothing.
func (p parameters) mismatch(in *pool.Pool, v pool.Volume) string {
	switch {
	case p.pool != "" && p.pool != in.Name():
		return "the volume is in pool " + in.Name()
	case p.transient && !v.Transient:
		return "the volume is not transient"
	}
	return ""
}
