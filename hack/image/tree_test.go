package main

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// TestTree_followsLinks: a path is followed through links to its file; a loop or a
// dangling link leads to none.
func TestTree_followsLinks(t *testing.T) {
	link := func(to string) file { return file{mode: fs.ModeSymlink | 0o777, link: to} }
	all := tree{
		"usr/lib64/loader":     link("/lib/abi/loader-1"),
		"usr/lib/abi/loader":   link("loader-1"),
		"usr/lib/abi/loader-1": {},
		"loop":                 link("loop"),
		"dangling":             link("nowhere"),
	}
	for name, want := range map[string]string{
		"usr/lib64/loader":     "usr/lib/abi/loader-1",
		"usr/lib/abi/loader":   "usr/lib/abi/loader-1",
		"usr/lib/abi/loader-1": "usr/lib/abi/loader-1",
		"loop":                 "",
		"dangling":             "",
		"missing":              "",
	} {
		got, _, err := all.follow(name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestTree_mergedDirectories: paths below /bin, /sbin and /lib* become paths below
// /usr.
func TestTree_mergedDirectories(t *testing.T) {
	for name, want := range map[string]string{
		"./bin/mount": "usr/bin/mount", "/lib64/ld.so": "usr/lib64/ld.so", "./usr/bin/x": "usr/bin/x",
		"etc/../sbin/y": "usr/sbin/y", "/etc/bin": "etc/bin",
	} {
		if got := merged(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// TestClosure_missingLibrary: a library that no package has is an error when the image
// is made, not when a node mounts.
func TestClosure_missingLibrary(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	needed, _, err := linkedWith(self)
	if err != nil {
		t.Fatal(err)
	}
	all := tree{}
	for _, name := range append(tools, extras...) {
		all[name] = file{}
	}
	all["usr/lib/abi/"+loaded[0]] = file{}
	if _, err := all.closure("abi"); err != nil {
		t.Fatal(err)
	}
	delete(all, "usr/lib/abi/"+loaded[0])
	if _, err := all.closure("abi"); err == nil || !strings.Contains(err.Error(), loaded[0]) {
		t.Errorf("a missing library: %v", err)
	}
	if len(needed) > 0 { // a race-enabled test is linked with glibc
		all["usr/lib/abi/"+loaded[0]] = file{content: self}
		if _, err := all.closure("abi"); err == nil || !strings.Contains(err.Error(), needed[0]) {
			t.Errorf("a missing library of a library: %v", err)
		}
	}
}

// TestPackageFile_oneOfTheArchitecture: the file of a package is found by its name and
// architecture, and there must be exactly one.
func TestPackageFile_oneOfTheArchitecture(t *testing.T) {
	dir := t.TempDir()
	if _, err := packageFile(dir, "mount", "amd64"); err == nil {
		t.Error("packageFile finds a package in an empty directory")
	}
	for i, name := range []string{"mount_1_amd64.deb", "mount_2_arm64.deb", "libmount1_1_amd64.deb", "mount_2_amd64.deb"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		path, err := packageFile(dir, "mount", "amd64")
		if last := i == 3; (err != nil) != last || !last && filepath.Base(path) != "mount_1_amd64.deb" {
			t.Errorf("%d: %s, %v", i, path, err)
		}
	}
}

// TestTag_ofReference: a reference of an image gives its tag, also with a port in the
// registry's name.
func TestTag_ofReference(t *testing.T) {
	for reference, want := range map[string]string{
		"ghcr.io/a/b:v1": "v1", "localhost:5000/b": "", "localhost:5000/b:2": "2",
	} {
		if got := tag(reference); got != want {
			t.Errorf("%s: %q, want %q", reference, got, want)
		}
	}
}

// TestTree_selinuxOfTheHost: mount reads the host's SELinux configuration, at the path
// where the chart mounts it.
func TestTree_selinuxOfTheHost(t *testing.T) {
	chart, err := os.ReadFile("../../deploy/helm/csi-dmsnap/templates/node-daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	at := path.Join("/etc", skeleton()["etc/selinux"].link)
	if mount := "mountPath: " + path.Dir(at) + "}"; path.Base(at) != "selinux" || !strings.Contains(string(chart), mount) {
		t.Errorf("etc/selinux leads to %s, and the chart has no %s", at, mount)
	}
}
