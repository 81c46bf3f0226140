//go:build kernel

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Without a driver, import turns logical volumes into volumes by their content, and
// --static only allows static volumes. Each refusal says what to do.
func TestImportCommand_withoutDriver(t *testing.T) {
	disk := strings.Split(os.Getenv("DMSNAP_TEST_DISKS"), ",")[0]
	tool := func(line string) {
		t.Helper()
		args := strings.Fields(line)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "pools:\n- name: fast\n  volumeGroup: vgimport\n  devices: [%s]\n", disk), 0o600); err != nil {
		t.Fatal(err)
	}
	tool("vgcreate -ff -y -q vgimport " + disk)
	t.Cleanup(func() { tool("vgremove -ff -y vgimport") })
	for _, lv := range []string{"files", "blank", "raw", "msdos"} {
		tool("lvcreate -y -Wy -Zy -L 64m vgimport -n " + lv)
	}
	tool("mkfs.ext4 -q /dev/vgimport/files")
	tool("mkfs.ext4 -q /dev/vgimport/raw")
	tool("mkswap -q /dev/vgimport/msdos")
	tool("lvchange -an vgimport/files")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"fast files --static --name pvc-1", 1, "drop --name and --mode"},
		{"fast msdos --static", 1, "is swap"},
		{"fast none --static", 1, "not found"},
		{"fast files --static", 0, "static volumes may now name logical volume files of pool fast"},
		{"fast files --static", 0, "may now name"},
		{"fast files --name pvc-1", 0, `logical volume files is now volume "pvc-1" of pool fast: mode filesystem, ext4`},
		{"fast files --name pvc-1", 0, `"pvc-1"`},
		{"fast files --name pvc-2", 1, `already volume "pvc-1"`},
		{"fast blank --name pvc-1", 1, "choose another with --name"},
		{"fast blank --mode filesystem", 1, "make a file system first"},
		{"fast blank", 0, "mode block"},
		{"fast raw --mode block", 0, "mode block"},
		{"fast msdos --mode filesystem", 1, "swap"},
		{"fast msdos", 0, "mode block"},
		{"fast none", 1, "none"},
		{"slow files", 1, `no pool "slow"`},
		{"fast files --mode both", 1, "must be filesystem or block"},
	} {
		out, complaint, code := program(t, append(strings.Fields("import "+c.args), "--config", config)...)
		if code != c.code || !strings.Contains(out+complaint, c.want) {
			t.Errorf("import %s: %d, %s%s, want %d, %s", c.args, code, out, complaint, c.code, c.want)
		}
	}
	if _, err := os.Stat("/dev/mapper/vgimport-files"); err == nil {
		t.Error("the import left the logical volume active")
	}
	out, complaint, code := program(t, "volumes", "--config", config)
	if code != 0 || !strings.Contains(out, "pvc-1") {
		t.Errorf("volumes: %d, %s%s", code, out, complaint)
	}
	if out, complaint, code := program(t, "check", "--config", config); code != 0 {
		t.Errorf("check: %d, %s%s", code, out, complaint)
	}
	if out, err := exec.Command("vgck", "vgimport").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("vgck: %v, %s", err, out)
	}
}
