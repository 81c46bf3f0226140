//go:build kernel

package filesystem

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// showSELinux lets mount see that the kernel has SELinux, as on a host with
// SELinux, until hide is called. It loads a policy, which stays loaded.
func showSELinux(t *testing.T) (hide func()) {
	t.Helper()
	const at, config = "/sys/fs/selinux", "/etc/selinux"
	if _, err := os.Stat(at); err != nil {
		t.Skip("the kernel was booted without SELinux; the User-mode Linux of hack/testkernel has it")
	}
	if m, err := MountAt(at); m != nil || err != nil {
		t.Skip("this is no test kernel: it has a policy")
	}
	for target, fs := range map[string]string{at: "selinuxfs", config: "tmpfs"} {
		if err := unix.Mount("none", target, fs, 0, ""); err != nil {
			t.Fatalf("mount %s: %v", target, err)
		}
	}
	hide = func() {
		for _, target := range []string{at, config} {
			if err := UnmountAll(target); err != nil {
				t.Error(err)
			}
		}
	}
	policy, err := os.ReadFile("testdata/selinux/policy")
	if err == nil {
		err = os.WriteFile(filepath.Join(at, "load"), policy, 0)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(config, "config"), []byte("SELINUX=permissive\nSELINUXTYPE=test\n"), 0o600)
	}
	if err != nil {
		hide()
		t.Fatal(err)
	}
	return hide
}

// The files have the requested SELinux label, or nothing is mounted: if the
// kernel refuses the label, and if mount does not see SELinux.
func TestInEffect_labels(t *testing.T) {
	const base = "system_u:object_r:container_file_t:s0"
	labels := []string{
		`noatime,context="` + base + `:c5,c1"`, `context="` + base + `:c3,c1,c2"`, "context=" + base,
		"fscontext=" + base, "defcontext=" + base, "rootcontext=" + base,
	}
	disk, target := disks(t, 1)[0], t.TempDir()
	for _, fs := range []string{Ext4, XFS, Btrfs} {
		wipe(t, disk)
		if err := Format(t.Context(), disk, fs); err != nil {
			t.Fatal(err)
		}
		d := Device{Path: disk, Type: fs}
		refused := func(option string, want error) {
			t.Helper()
			err := d.Mount(target, false, []string{option})
			if err == nil || want != nil && !errors.Is(err, want) {
				t.Errorf("%s with %s: %v", fs, option, err)
			}
			if m, err := MountAt(target); m != nil || err != nil {
				t.Fatalf("%s with %s: mounted is %+v, %v", fs, option, m, err)
			}
		}
		hide := showSELinux(t)
		for i, option := range labels {
			if err := d.Mount(target, false, []string{option}); err != nil {
				t.Errorf("%s with %s: %v", fs, option, err)
				continue
			}
			m, err := MountAt(target)
			if err != nil {
				t.Fatal(err)
			}
			for j, other := range labels {
				if err := InEffect(m, SplitOptions(other)); (err == nil) != (i == j) {
					t.Errorf("%s has %s: InEffect of %s: %v", fs, option, other, err)
				}
			}
			label := make([]byte, 256)
			n, err := unix.Getxattr(target, "security.selinux", label)
			if has := string(label[:max(n-1, 0)]); err != nil || i == 0 && has != base+":c1,c5" {
				t.Errorf("%s with %s: its root has %q, %v", fs, option, has, err)
			}
			if err := Unmount(target); err != nil {
				t.Fatal(err)
			}
		}
		refused("context=system_u:object_r:none_t:s0", nil)
		hide()
		for _, option := range labels {
			refused(option, ErrNotInEffect)
		}
	}
}
