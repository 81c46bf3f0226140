package driver

import (
	"errors"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/conditions"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// checkName checks a volume's or snapshot's name.
func checkName(name string) error {
	if name == "" || len(name) > handle.Max {
		return invalid("a name of 1 to %d bytes is needed, %q has %d", handle.Max, name, len(name))
	}
	return nil
}

// capacityRange returns what a request asks for, in bytes; 0 is unspecified.
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

// parameterPool names the pool in the parameters of a storage class.
const parameterPool = "pool"

// checkParameters refuses what this driver does not understand. Keys of the
// sidecars pass; the file system is in the volume capability, "fstype" is its
// deprecated name in storage classes.
func checkParameters(parameters map[string]string, known ...string) error {
next:
	for key := range parameters {
		if strings.HasPrefix(key, "csi.storage.k8s.io/") {
			continue
		}
		for _, k := range known {
			if key == k {
				continue next
			}
		}
		return invalid("unknown parameter %q", key)
	}
	return nil
}

// poolFor returns the pool that the parameters name, or the only one. A pool
// that another node may have is RESOURCE_EXHAUSTED: the scheduler tries again.
func (d *Driver) poolFor(parameters map[string]string) (*pool.Pool, error) {
	if err := checkParameters(parameters, parameterPool, conditions.ParameterTransient, conditions.ParameterModeChange, "fstype"); err != nil {
		return nil, err
	}
	name, named := parameters[parameterPool]
	switch {
	case !named && len(d.pools.Names()) == 1:
		name = d.pools.Names()[0]
	case !named:
		return nil, invalid("the parameter %q is needed: this node has several pools", parameterPool)
	}
	p, err := d.pool(name)
	if errors.Is(err, pool.ErrNotFound) {
		return nil, exhausted("node %s has no pool %q", d.node, name)
	}
	return p, err
}
