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

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// groupText returns LVM2's list of a group's logical volumes.
func groupText(t *testing.T, group string) string {
	t.Helper()
	out, err := exec.Command("lvs", "-a", "-o", "lv_name,lv_size,lv_attr,lv_uuid,lv_tags", group).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// rollback finds volume and snapshot by name and by id, changes nothing unless --yes is
// given and the volume is on this node, in this pool and unused, and records who ran it.
// An open pool hydrates the volume.
func TestRollbackCommand_besideDriver(t *testing.T) {
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
	if code != 0 || !strings.Contains(out, "would be rolled back to snapshot snapshot-a") || !strings.Contains(out, "after the newest snapshot snapshot-b") {
		t.Errorf("dry run: %d, %s%s", code, out, complaint)
	}
	ok(p.Deactivate(ctx, v.LV))
	id := func(node, in, lv string) string { return handle.ID{Node: node, Pool: in, LV: lv}.String() }
	volume, snapshot := id("n", "fast", v.LV), id("n", "fast", old.LV)
	// Ids of another node or pool, although this pool has both names; and no --yes.
	before := groupText(t, "vgback")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"rollback", id("other", "fast", v.LV), snapshot, "--yes"}, 1, "is on node other, this is node n; nothing was changed"},
		{[]string{"rollback", volume, id("other", "fast", old.LV), "--yes"}, 1, "is on node other"},
		{[]string{"rollback", volume, id("n", "slow", old.LV), "--yes"}, 1, "is in pool slow, not in pool fast"},
		{[]string{"rollback", "pvc-1", id("n", "slow", old.LV), "--yes"}, 1, "is in pool slow, but the volume is in pool fast"},
		{[]string{"rollback", id("n", "slow", v.LV), snapshot, "--yes"}, 1, "not in pool slow"},
		{[]string{"rollback", id("n", "slow", v.LV), "snapshot-a", "--yes"}, 1, `no pool "slow"`},
		{[]string{"rollback", id("n", "fast", "pvc"), snapshot, "--yes"}, 1, `no volume "pvc"`},
		{[]string{"rollback", volume, "v1:n:fast", "--yes"}, 1, "is not an id"},
		{[]string{"rollback", volume, snapshot, "--yes", "--dry-run"}, 1, "dry-run"},
		{[]string{"rollback", volume, snapshot}, 0, "Nothing was changed. Use --yes"},
		{[]string{"tree", id("other", "fast", v.LV)}, 1, "is on node other"},
		{[]string{"tree", id("n", "slow", v.LV)}, 1, `no pool "slow"`},
		{[]string{"tree", volume}, 0, "snapshot-a"},
		{[]string{"import", "fast", id("other", "fast", v.LV)}, 1, "is on node other"},
		{[]string{"import", "fast", id("n", "slow", v.LV), "--static"}, 1, "is in pool slow"},
		{[]string{"adopt", "fast", id("other", "fast", v.LV), "--block"}, 1, "is on node other"},
	} {
		out, complaint, code := program(t, append(c.args, "--node-name", "n", "--config", config)...)
		if code != c.code || !strings.Contains(out+complaint, c.want) {
			t.Errorf("%v: %d, %s%s, want %d, %s", c.args, code, out, complaint, c.code, c.want)
		}
	}
	if out, complaint, code := program(t, "rollback", volume, snapshot, "--yes", "--endpoint", "unix:///does/not/exist", "--config", config); code != 1 || !strings.Contains(complaint, "cannot tell whether") {
		t.Errorf("on a node without a name: %d, %s%s", code, out, complaint)
	}
	if after := groupText(t, "vgback"); after != before {
		t.Errorf("a refused command changed the group:\n%s\nbefore\n%s", after, before)
	}
	began := time.Now().Add(-time.Second)
	out, complaint, code = program(t, "rollback", volume, snapshot, "--yes", "-o", "json", "--node-name", "n", "--config", config)
	var done rollback
	if err := json.Unmarshal([]byte(out), &done); err != nil || code != 0 {
		t.Fatalf("rollback: %d, %v: %s%s", code, err, out, complaint)
	}
	if done.LV != v.LV || done.Volume != "pvc-1" || done.Snapshot != "snapshot-a" || done.Newest != "snapshot-b" || done.Former == "" || done.Size != v.Size {
		t.Errorf("%+v", done)
	}
	for _, want := range []string{"(uid 0) on ", "back to snapshot snapshot-a, taken ", "its newest snapshot snapshot-b, taken "} {
		if out, _, _ := program(t, "tree", volume, "--node-name", "n", "--config", config); !strings.Contains(out, want) {
			t.Errorf("who did it: %q is not in\n%s", want, out)
		}
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
		t.Error("the volume does not have the snapshot's content")
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
			t.Fatalf("the former volume: %+v", former)
		}
		if states[v.LV].State == pool.StateReady {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not hydrated: %+v", states[v.LV])
		}
	}
	deeds, err := p.Deeds() // the driver makes Events of them
	ok(err)
	if len(deeds) != 1 || deeds[0].LV != v.LV || deeds[0].Reason != pool.ReasonRolledBack || deeds[0].At.Before(began.Truncate(time.Second)) {
		t.Errorf("on record: %+v", deeds)
	}
	if out, complaint, code := program(t, "check", "--config", config); code != 0 {
		t.Errorf("check: %d, %s%s", code, out, complaint)
	}
}
