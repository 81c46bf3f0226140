package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestQEMU_oneBoot: one boot in QEMU, which is slow without KVM, does what the tests
// for User-mode Linux do in many boots.
func TestQEMU_oneBoot(t *testing.T) {
	if os.Getenv("DMSNAP_KERNEL") != "qemu" {
		t.Skip("set DMSNAP_KERNEL=qemu to run this test; it takes about 10 s, and the first time it fetches a kernel")
	}
	share := t.TempDir()
	kept := filepath.Join(t.TempDir(), "kept.img")
	cmd := command(t, "qemu", "run", "--cpus", "2", "--disks", "64M,"+kept+":96M", "--share", share,
		"--modules", "dm-thin-pool", "--", "sh", "-c", `
		echo "$1" $(nproc)
		for d in $(echo $DMSNAP_TEST_DISKS | tr , ' '); do blockdev --getsize64 $d; done
		dmsetup targets | grep -c -E '^(snapshot|thin) '
		dmsetup create z --table '0 8 zero' && dmsetup table z
		mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && ls /mnt
		printf mark > /dev/vdb
		touch /usr/written && echo result > $DMSNAP_SHARE/out
		echo to stderr >&2
		exit 7`, "name", "two words")
	got := finish(t, cmd)
	want := result{
		stdout: "two words 2\n67108864\n100663296\n2\n0 8 zero \nlost+found\n",
		stderr: "to stderr\n",
		code:   7,
	}
	if got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if out, err := os.ReadFile(filepath.Join(share, "out")); err != nil || string(out) != "result\n" {
		t.Errorf("the shared directory has %q, %v", out, err)
	}
	if disk, err := os.ReadFile(kept); err != nil || string(disk[:4]) != "mark" {
		t.Errorf("the kept disk lacks what was written to it (%v)", err)
	}
}

// TestCpio_readByBusybox: busybox extracts the archive with all its files.
func TestCpio_readByBusybox(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed; run hack/deps.sh")
	}
	var c cpio
	files := map[string]string{"init": "x", "a/b/c": "four", "a/b/empty": "", "a/d": "12345"}
	for name, data := range files {
		c.add(name, []byte(data))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "archive"), c.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "busybox cpio -i <archive")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestQEMU_arm64: a guest of another architecture runs programs for it before the
// host's.
func TestQEMU_arm64(t *testing.T) {
	if os.Getenv("DMSNAP_KERNEL") != "qemu-arm64" {
		t.Skip("a simulated machine is slow: set DMSNAP_KERNEL=qemu-arm64")
	}
	out, err := exec.Command("../testkernel", "run", "--disks", "64M", "--timeout", "5m", "--", "dmsetup", "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Driver version") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestImageOf_metapackage: the package of a kernel is found among what its metapackage
// depends on.
func TestImageOf_metapackage(t *testing.T) {
	got, err := imageOf("linux-image-arm64\n  Depends: linux-image-6.1.0-50-arm64\n")
	if err != nil || got != "linux-image-6.1.0-50-arm64" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := imageOf("linux-image-arm64\n"); err == nil {
		t.Error("a metapackage without a kernel")
	}
}
