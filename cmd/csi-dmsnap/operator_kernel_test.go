//go:build kernel

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2/lvm2test"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The commands that look work beside an open pool, which holds its run lock, and
// after it was closed. check finds a suspended device.
func TestLookCommands_besideDriver(t *testing.T) {
	ctx := context.Background()
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatalf("DMSNAP_TEST_DISKS must name scratch disks: %v", err)
	}
	if _, err := f.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	config := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("pools:\n- name: fast\n  volumeGroup: vginspect\n  devices: [%s]\n  create: true\n", disk)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	configs, err := readConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if out, complaint, code := program(t, "check", "--config", config); code != 2 || !strings.Contains(complaint, "vginspect") {
		t.Errorf("check without a group: %d, %s%s", code, out, complaint)
	}
	p, err := pool.Open(ctx, configs[0], pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		if err := lvm2test.Remove("vginspect"); err != nil {
			t.Error(err)
		}
	})
	v, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "base", Size: 64 * size.MiB, Mode: pool.Block})
	if err != nil {
		t.Fatal(err)
	}
	path, err := p.Activate(ctx, v.LV)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v\n%s", err, out)
	}
	mounted := t.TempDir()
	if err := unix.Mount(path, mounted, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(mounted, 0) })
	t.Cleanup(func() { unmount() })
	for _, s := range []string{"snap1", "snap2"} {
		if _, err := p.CreateSnapshot(ctx, s, v.LV); err != nil {
			t.Fatal(err)
		}
	}
	for _, state := range []string{"open", "closed"} {
		for _, c := range []struct {
			args []string
			want []string
		}{
			{[]string{"pools"}, []string{"fast", "vginspect", disk}},
			{[]string{"volumes"}, []string{"base", "64MiB", "block", "ready", "yes"}},
			{[]string{"snapshots"}, []string{"1/2", "snap2", "live", "2/2", "snap1", "frozen"}},
			{[]string{"tree", "base", "--plan"}, []string{"/base: nothing to do"}},
			{[]string{"tree", "base"}, []string{"mounted at " + mounted, "├─ snap2", "└─ snap1", "vginspect-base ", "└─ vginspect-base-real", "├─ vginspect-snap2-cow", "└─ vginspect-base-real (see above)", " P 32"}},
		} {
			out, complaint, code := program(t, append(c.args, "--config", config)...)
			if code != 0 || complaint != "" {
				t.Errorf("%s: %v: %d, %s", state, c.args, code, complaint)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("%s: %v: %q is not in\n%s", state, c.args, w, out)
				}
			}
			t.Logf("%v\n%s", c.args, out)
			out, _, code = program(t, append(c.args, "--config", config, "-o", "json", "--pool", "fast")...)
			var data any
			if err := json.Unmarshal([]byte(out), &data); err != nil || code != 0 {
				t.Errorf("%s: %v: %d, %v: %s", state, c.args, code, err, out)
			}
		}
		// Only a driver knows the state of a mounted file system.
		if out, complaint, code := program(t, "check", "--config", config); code != 2 || strings.Contains(out, "all is well") || !strings.Contains(out, "no problems found; mounted volumes not checked: 1") || !strings.Contains(complaint, "the driver does not answer") {
			t.Errorf("%s: check: %d, %s%s", state, code, out, complaint)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := unmount(); err != nil {
		t.Error(err)
	}
	if out, complaint, code := program(t, "check", "--config", config); code != 0 || complaint != "" || !strings.Contains(out, "all is well") {
		t.Errorf("check with nothing mounted: %d, %s%s", code, out, complaint)
	}
	if out, err := exec.Command("dmsetup", "suspend", "vginspect-base").CombinedOutput(); err != nil {
		t.Fatalf("dmsetup: %v\n%s", err, out)
	}
	defer exec.Command("dmsetup", "resume", "vginspect-base").Run()
	out, complaint, code := program(t, "check", "--config", config)
	if code != 1 || !strings.Contains(out, "DeviceSuspended") || !strings.Contains(complaint, errFindings.Error()) {
		t.Errorf("check of a suspended device: %d, %s%s", code, out, complaint)
	}
	out, _, code = program(t, "check", "--config", config, "-o", "json")
	var results []pool.Verification
	if err := json.Unmarshal([]byte(out), &results); err != nil || code != 1 || len(results) != 1 || len(results[0].Findings) != 1 || results[0].Findings[0].Where != "vginspect-base" {
		t.Errorf("check for programs: %d, %v, %s", code, err, out)
	}
	if out, _, _ := program(t, "tree", "base", "--config", config); !strings.Contains(out, "SUSPENDED") {
		t.Errorf("the tree does not show the suspended device:\n%s", out)
	}
	if out, _, _ := program(t, "tree", "base", "--plan", "--config", config); out != "resume   vginspect-base\n" {
		t.Errorf("the plan for a suspended device:\n%s", out)
	}
	out, _, _ = program(t, "tree", "base", "--plan", "--config", config, "-o", "json")
	var plan []pool.PlanStep
	if err := json.Unmarshal([]byte(out), &plan); err != nil || len(plan) != 1 || plan[0].Do != "resume" || plan[0].Device != "vginspect-base" {
		t.Errorf("the plan for programs: %v, %s", err, out)
	}
}
