package driver

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Only a path that stays below the kubelet directory after all symbolic links
// is accepted.
func TestOwnPath_symbolicLinks(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kubelet := filepath.Join(base, "kubelet")
	for _, dir := range []string{kubelet + "/pods/p1/mount", kubelet + "x", base + "/outside"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		kubelet + "/pods/within":   kubelet + "/pods/p1",
		kubelet + "/pods/out":      base + "/outside",
		kubelet + "/pods/up":       "../..",
		kubelet + "/pods/dangling": base + "/nothing",
		kubelet + "/pods/p1/last":  base + "/outside",
		base + "/alias":            kubelet,
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	d := &Driver{kubeletDir: kubelet}
	for path, want := range map[string]string{
		kubelet + "/pods/p1/mount":     kubelet + "/pods/p1/mount",
		kubelet + "/pods/p1/new":       kubelet + "/pods/p1/new",
		kubelet + "/pods/p1//mount/":   kubelet + "/pods/p1/mount",
		kubelet + "/pods/p2/a/b":       kubelet + "/pods/p2/a/b",
		kubelet + "/pods/within/mount": kubelet + "/pods/p1/mount",
		base + "/alias/pods/p1/mount":  kubelet + "/pods/p1/mount",

		"relative/path":                  "",
		"":                               "",
		"/":                              "",
		kubelet:                          "",
		kubelet + "/":                    "",
		kubelet + "x/target":             "",
		base + "/outside/target":         "",
		kubelet + "/../outside/target":   "",
		kubelet + "/pods/../pods/p1/new": "",
		kubelet + "/pods/out/target":     "",
		kubelet + "/pods/out":            "",
		kubelet + "/pods/out/a/b/c":      "",
		kubelet + "/pods/up/outside/x":   "",
		kubelet + "/pods/dangling/x":     "",
		kubelet + "/pods/p1/last":        "",
	} {
		got, err := d.ownPath(path)
		if got != want || (want == "") != (status.Code(err) == codes.InvalidArgument) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}
