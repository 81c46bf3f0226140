package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/build"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// PauseImage is the sandbox image in containerd's configuration.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// The images that Kubernetes v1.36.3's own tests use
// (test/utils/image/manifest.go there).
const (
	busyboxImage = kube.Image
	agnhostImage = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
	nginxImage   = "registry.k8s.io/e2e-test-images/nginx:1.15-4"
	glibcImage   = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0"
)

// sidecars maps each program that has an image of its own to the module that
// has its version.
var sidecars = map[string]string{
	"csi-provisioner":     "github.com/kubernetes-csi/external-provisioner/v6",
	"csi-resizer":         "github.com/kubernetes-csi/external-resizer/v2",
	"csi-snapshotter":     "github.com/kubernetes-csi/external-snapshotter/v8",
	"snapshot-controller": "github.com/kubernetes-csi/external-snapshotter/v8",
}

// SidecarImage returns the name under which the sidecar's project publishes it.
func SidecarImage(ctx context.Context, set *build.Set, program string) (string, error) {
	version, _, err := set.Module(ctx, sidecars[program])
	return "registry.k8s.io/sig-storage/" + program + ":" + version, err
}

// Archives writes the archives of all images, unless they are in the cache, and
// returns their paths. key changes when any image changes.
func Archives(ctx context.Context, set *build.Set, log io.Writer) (files []string, key string, err error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, "", fmt.Errorf("%w: install the Debian package busybox-static (hack/deps.sh)", err)
	}
	all, err := list(ctx, set, busybox)
	if err != nil {
		return nil, "", err
	}
	if key, err = digest(all, busybox); err != nil {
		return nil, "", err
	}
	dir := set.CacheFile("images-" + key)
	_, err = os.Stat(dir)
	made := err == nil
	unfinished := dir + ".new"
	if !made {
		if err := os.MkdirAll(unfinished, 0o755); err != nil {
			return nil, "", err
		}
	}
	for name, image := range all {
		files = append(files, filepath.Join(dir, name+".tar"))
		if made {
			continue
		}
		fmt.Fprintf(log, "building the image %s\n", image.Names[0])
		if err := image.Write(filepath.Join(unfinished, name+".tar")); err != nil {
			return nil, "", fmt.Errorf("image %s: %w", name, err)
		}
	}
	slices.Sort(files)
	if made {
		return files, key, nil
	}
	return files, key, os.Rename(unfinished, dir)
}

func list(ctx context.Context, set *build.Set, busybox string) (map[string]*Image, error) {
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", busybox, err)
	}
	links := map[string]string{}
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" {
			links["/bin/"+a] = "busybox"
		}
	}
	pause := set.CacheFile("pause")
	if err := set.Compile(ctx, "./pause", pause); err != nil {
		return nil, err
	}
	all := map[string]*Image{
		"pause": {Names: []string{PauseImage}, Files: map[string]string{"/pause": pause}, Entrypoint: []string{"/pause"}},
		"busybox": {
			Names: []string{busyboxImage}, Files: map[string]string{"/bin/busybox": busybox}, Links: links, Cmd: []string{"sh"},
		},
		"agnhost": {
			Names: []string{agnhostImage}, Files: map[string]string{"/bin/busybox": busybox, "/agnhost": set.Path("agnhost")},
			Links: links, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
		},
	}
	// The storage tests use only the shell of nginx, and only a shell and
	// coreutils' dd, which has the flag nocache, of glibc-dns-testing.
	all["nginx"] = &Image{Names: []string{nginxImage}, Files: all["busybox"].Files, Links: links, Cmd: []string{"sh"}}
	if all["glibc"], err = withDD(busybox, links); err != nil {
		return nil, err
	}
	for program := range sidecars {
		name, err := SidecarImage(ctx, set, program)
		if err != nil {
			return nil, err
		}
		all[program] = &Image{
			Names: []string{name}, Files: map[string]string{"/" + program: set.Path(program)}, Entrypoint: []string{"/" + program},
		}
	}
	return all, nil
}

// withDD returns busybox with this machine's dd and shell: busybox's own shell
// prefers busybox's dd. They need only the C library.
func withDD(busybox string, links map[string]string) (*Image, error) {
	files := map[string]string{"/bin/busybox": busybox, "/bin/dd": "/bin/dd", "/bin/sh": "/bin/dash"}
	for _, library := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		files[library] = library
	}
	links = maps.Clone(links)
	for path, file := range files {
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("making the image %s: %w", glibcImage, err)
		}
		delete(links, path)
	}
	return &Image{Names: []string{glibcImage}, Files: files, Links: links, Cmd: []string{"sh"}}, nil
}

func digest(all map[string]*Image, busybox string) (string, error) {
	sum := sha256.New()
	// The other programs change only with the set of programs.
	f, err := os.Open(busybox)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(sum, "%s %+v\n", name, *all[name])
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}
