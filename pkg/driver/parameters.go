package driver

import (
	"maps"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// parameterPool is the storage class parameter that names the pool.
const parameterPool = "pool"

// parameters are the parsed parameters of a storage class. All calls that have
// parameters use parseParameters, so that all of them accept the same parameters.
type parameters struct {
	pool       string // "" if the class names no pool
	transient  bool
	modeChange bool   // the content of a raw block volume may be mounted
	claim      string // name of the claim; "" if the request does not come from Kubernetes
}

// parseParameters reads the parameters of a storage class. Errors: INVALID_ARGUMENT.
func parseParameters(m map[string]string) (p parameters, err error) {
	// csi-provisioner reads this key in any letter case, and moves the file system
	// to the volume capability.
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

// noMutable refuses all parameters of a VolumeAttributesClass. Errors:
// INVALID_ARGUMENT.
func noMutable(parameters map[string]string) error {
	if len(parameters) > 0 {
		return invalid("there are no mutable parameters")
	}
	return nil
}

// checkParameters refuses parameters that are neither known nor keys of the CSI
// sidecars. Errors: INVALID_ARGUMENT.
func checkParameters(parameters map[string]string, known ...string) error {
	for key := range parameters {
		if !slices.Contains(known, key) && !strings.HasPrefix(key, "csi.storage.k8s.io/") {
			return invalid("unknown parameter %q", key)
		}
	}
	return nil
}

// mismatch explains why the volume v in the pool does not match the parameters;
// "" if it does.
func (p parameters) mismatch(in *pool.Pool, v pool.Volume) string {
	switch {
	case p.pool != "" && p.pool != in.Name():
		return "the volume is in pool " + in.Name()
	case p.transient && !v.Transient:
		return "the volume is not transient"
	}
	return ""
}
