//go:build kernel

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
)

// Without a driver, adopt turns a logical volume and lvm2's snapshots of it into a
// volume and snapshots. The other commands show both states.
func TestAdoptCommand_withoutDriver(t *testing.T) {
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	for _, args := range [][]string{
		{"vgcreate", "-qq", "-ff", "-y", "vgadopt", disk},
		{"lvcreate", "-qq", "-y", "-Wn", "-L64m", "-n", "base", "vgadopt"},
		{"lvcreate", "-qq", "-y", "-s", "-L16m", "-n", "monday", "vgadopt/base"},
		{"lvcreate", "-qq", "-y", "-s", "-L16m", "-n", "tuesday", "vgadopt/base"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := lvm2test.Remove("vgadopt"); err != nil {
			t.Error(err)
		}
	})
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "pools:\n- name: fast\n  volumeGroup: vgadopt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"volumes"}, {"snapshots"}, {"tree", "base"}} {
		out, complaint, code := program(t, append(args, "--config", config)...)
		if code != 0 || !strings.Contains(out, "base") || !strings.Contains(out, "lvm2") {
			t.Errorf("%v: %d, %s%s", args, code, out, complaint)
		}
	}
	for _, args := range [][]string{
		{"adopt", "fast", "base"},                                // neither a file system nor block
		{"adopt", "fast", "base", "--block", "--fs-type", "xfs"}, // both
		{"adopt", "fast", "monday", "--block"},                   // a snapshot
		{"adopt", "slow", "base", "--block"},                     // an unknown pool
	} {
		if out, complaint, code := program(t, append(args, "--config", config)...); code == 0 || complaint == "" {
			t.Errorf("%v: %d, %s%s", args, code, out, complaint)
		}
	}
	out, complaint, code := program(t, "adopt", "fast", "base", "--block", "--name", "pvc-1", "--config", config, "-o", "json")
	var v pool.VolumeState
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 0 {
		t.Fatalf("adopt: %d, %v: %s%s", code, err, out, complaint)
	}
	if v.Name != "pvc-1" || v.State != pool.StateReady || len(v.Layers) != 3 {
		t.Errorf("adopted: %+v", v)
	}
	for i, want := range []struct{ name, state string }{{"", pool.StateLive}, {"tuesday", pool.StateFrozen}, {"monday", pool.StateFrozen}} {
		if l := v.Layers[i]; l.Name != want.name || l.State != want.state {
			t.Errorf("layer %d is %+v, want %+v", i, l, want)
		}
	}
}
