//go:build kernel

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
)

// The commands succeed on a node that lacks an optional pool, and say so. They ignore
// the pools of other nodes, and fail if a pool is missing that is not optional.
func TestOperator_optionalPool(t *testing.T) {
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	if err := os.WriteFile(disk, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	write := func(more string) {
		t.Helper()
		text := "pools:\n- {name: fast, volumeGroup: vgdiffer, devices: [" + disk + "], create: true}\n" +
			"- {name: theirs, nodes: [other-*]}\n" + more
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	configs, err := readConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(context.Background(), configs[0], pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		if err := lvm2test.Remove("vgdiffer"); err != nil {
			t.Error(err)
		}
	})
	const absent = "pool large: optional, and not on this node"
	for _, c := range []struct {
		pool string // one more pool
		code int
		says string
	}{
		{"- {name: large, optional: true}\n", 0, absent},
		{"- {name: large, optional: true, devices: [/dev/no-such-*], create: true}\n", 0, absent},
		{"- {name: large}\n", 2, "no volume group large"},
		{"- {name: large, optional: true, devices: [" + disk + "]}\n", 2, "large"}, // the disk is configured, but is not the pool's
	} {
		write(c.pool)
		out, complaint, code := program(t, "check", "--config", config, "--node-name", "this-1")
		if code != c.code || !strings.Contains(out+complaint, c.says) || strings.Contains(out+complaint, "theirs") {
			t.Errorf("%s check: exit code %d, %s%s", c.pool, code, out, complaint)
		}
		out, complaint, code = program(t, "pools", "--config", config, "--node-name", "this-1")
		if (code == 0) != (c.code == 0) || !strings.Contains(out, "fast") || !strings.Contains(complaint, c.says) {
			t.Errorf("%s pools: exit code %d, %s%s", c.pool, code, out, complaint)
		}
	}
}
