//go:build kernel

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/handle"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestRollbackCommand rolls a volume back beside an open pool, which hydrates it.
func TestRollbackCommand(t *testing.T) {
	ctx := context.Background()
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	if out, err := exec.Command("vgcreate", "-qq", "-ff", "-y", "vgback", disk).CombinedOutput(); err != nil {
		t.Fatalf("vgcreate: %v\n%s", err, out)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "pools:\n- name: fast\n  volumeGroup: vgback\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	configs, err := readConfig(config)
	ok(err)
	p, err := pool.Open(ctx, configs[0], pool.Options{})
	ok(err)
	t.Cleanup(func() {
		p.Close()
		if err := lvm2test.Remove("vgback"); err != nil {
			t.Error(err)
		}
	})
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "pvc-1", Size: 64 * size.MiB, Mode: pool.Block})
	ok(err)
	path, err := p.Activate(ctx, v.LV)
	ok(err)
	write := func(b byte) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
		ok(err)
		defer f.Close()
		_, err = f.WriteAt(bytes.Repeat([]byte{b}, 1<<20), 8<<20)
		ok(err)
	}
	var old pool.Snapshot
	for i, name := range []string{"snapshot-a", "snapshot-b"} {
		write(byte(i + 1))
		s, err := p.CreateSnapshot(ctx, name, v.LV)
		ok(err)
		if i == 0 {
			old = s
		}
	}
	write(3)

	open, err := os.Open(path)
	ok(err)
	for _, c := range []struct {
		args, want string
	}{
		{"pvc-1 snapshot-a", "in use"},
		{"pvc-2 snapshot-a", `no volume "pvc-2"`},
		{"pvc-1 snapshot-c", `no snapshot "snapshot-c"`},
		{"pvc-1 snapshot-a --pool slow", `no pool "slow"`},
		{"pvc-1", "accepts 2 arg"},
	} {
		out, complaint, code := program(t, append(strings.Fields("rollback --config "+config), strings.Fields(c.args)...)...)
		if code != 1 || out != "" || !strings.Contains(complaint, c.want) {
			t.Errorf("rollback %s: %d, %s%s, want %s", c.args, code, out, complaint, c.want)
		}
	}
	ok(open.Close())
	out, complaint, code := program(t, "rollback", "pvc-1", "snapshot-a", "--dry-run", "--config", config)
	if code != 0 || !strings.Contains(out, "would be what it was at snapshot snapshot-a") || !strings.Contains(out, "after its newest snapshot snapshot-b") {
		t.Errorf("dry run: %d, %s%s", code, out, complaint)
	}
	ok(p.Deactivate(ctx, v.LV))
	volume := handle.ID{Node: "n", Pool: "fast", LV: v.LV}.String()
	snapshot := handle.ID{Node: "n", Pool: "fast", LV: old.LV}.String()
	out, complaint, code = program(t, "rollback", volume, snapshot, "-o", "json", "--config", config)
	var done rollback
	if err := json.Unmarshal([]byte(out), &done); err != nil || code != 0 {
		t.Fatalf("rollback: %d, %v: %s%s", code, err, out, complaint)
	}
	if done.LV != v.LV || done.Volume != "pvc-1" || done.Snapshot != "snapshot-a" || done.Newest != "snapshot-b" || done.Former == "" || done.Size != v.Size {
		t.Errorf("%+v", done)
	}
	path, err = p.Activate(ctx, v.LV)
	ok(err)
	b := make([]byte, 1<<20)
	f, err := os.Open(path)
	ok(err)
	_, err = f.ReadAt(b, 8<<20)
	ok(err)
	ok(f.Close())
	if !bytes.Equal(b, bytes.Repeat([]byte{1}, 1<<20)) {
		t.Error("it is not what it was at the snapshot")
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, complaint, code := program(t, "volumes", "-o", "json", "--config", config)
		var all []pool.VolumeState
		if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 {
			t.Fatalf("volumes: %d, %v: %s%s", code, err, out, complaint)
		}
		states := map[string]pool.VolumeState{}
		for _, s := range all {
			states[s.LV] = s
		}
		if former := states[done.Former]; former.State != pool.StateFormer || former.FormerOf != v.LV || len(former.Layers) != 2 {
			t.Fatalf("what it was: %+v", former)
		}
		if states[v.LV].State == pool.StateReady {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not hydrated: %+v", states[v.LV])
		}
	}
	if out, complaint, code := program(t, "check", "--config", config); code != 0 {
		t.Errorf("check: %d, %s%s", code, out, complaint)
	}
}
