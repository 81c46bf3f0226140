//go:build kernel

package dm

import (
	"errors"
	"testing"
)

// TestTargetVersion_sameAsTargets: both calls report the same version of each
// target, and an unknown target is ErrNotFound.
func TestTargetVersion_sameAsTargets(t *testing.T) {
	c := open(t)
	v, err := c.Version()
	must(t, err)
	if v.Major != 4 || v.Minor == 0 {
		t.Errorf("ioctl version is %v", v)
	}
	versions := map[string]Version{}
	for _, name := range []string{"linear", "striped", "snapshot", "snapshot-origin", "snapshot-merge", "mirror", "zero", "error"} {
		versions[name], err = c.TargetVersion(name)
		must(t, err)
	}
	targets, err := c.Targets()
	must(t, err)
	for name, v := range versions {
		if targets[name] != v || v.Major == 0 {
			t.Errorf("version of %s is %v and in the list %v", name, v, targets[name])
		}
	}
	if _, err := c.TargetVersion("nonsense"); !errors.Is(err, ErrNotFound) {
		t.Errorf("version of a target that does not exist: %v", err)
	}
}
