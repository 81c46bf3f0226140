//go:build kernel

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Lost snapshots are findings, also of a deleted volume: beside an open pool, and
// without one.
func TestCheck_lostSnapshots(t *testing.T) {
	ctx := context.Background()
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	tool := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	tool("vgcreate", "-qq", "-ff", "-y", "vglost", disk)
	config := filepath.Join(t.TempDir(), "config.yaml")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(os.WriteFile(config, fmt.Appendf(nil, "pools:\n- name: fast\n  volumeGroup: vglost\n"), 0o600))
	configs, err := readConfig(config)
	ok(err)
	p, err := pool.Open(ctx, configs[0], pool.Options{})
	ok(err)
	t.Cleanup(func() {
		p.Close()
		ok(lvm2test.Remove("vglost"))
	})
	for _, name := range []string{"kept", "gone"} {
		v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: name, Size: 32 * size.MiB, Mode: pool.Block})
		ok(err)
		s, err := p.CreateSnapshot(ctx, "of-"+name, v.LV)
		ok(err)
		if name == "gone" {
			ok(p.DeleteVolume(ctx, v.LV))
		}
		tool("lvchange", "-qq", "--addtag", "dmsnap:lost", "vglost/"+s.LV)
	}
	for _, state := range []string{"open", "closed"} {
		out, complaint, code := program(t, "check", "--config", config)
		if code != 1 || !strings.Contains(out, "SnapshotLost") || !strings.Contains(out, "not checked, because only the running driver knows") {
			t.Errorf("%s: %d, %s%s", state, code, out, complaint)
		}
		out, _, _ = program(t, "check", "--config", config, "-o", "json")
		var results []checked
		ok(json.Unmarshal([]byte(out), &results))
		var found []string
		for _, f := range results[0].Findings {
			found = append(found, f.Reason+" "+f.Where)
		}
		if want := []string{"SnapshotLost vglost/of-gone", "SnapshotLost vglost/of-kept"}; !slices.Equal(found, want) {
			t.Errorf("%s: found %v, want %v", state, found, want)
		}
		if results[0].NoDriver == "" {
			t.Errorf("%s: the driver seems to have answered: %s", state, out)
		}
		ok(p.Close())
	}
}
