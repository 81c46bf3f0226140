package images

import (
	"archive/tar"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestImage_write: the archive of an image is reproducible, and has its names, files,
// links and entrypoint.
func TestImage_write(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := Image{
		Names:      []string{"registry.example/one:1", "registry.example/two:2"},
		Files:      map[string]string{"/usr/bin/program": program},
		Links:      map[string]string{"/bin/sh": "../usr/bin/program"},
		Entrypoint: []string{"/usr/bin/program"},
	}
	digests := map[v1.Hash]bool{}
	for range 2 {
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := image.Write(file); err != nil {
			t.Fatal(err)
		}
		for _, n := range image.Names {
			digests[readBack(t, file, n)] = true
		}
	}
	if len(digests) != 1 {
		t.Errorf("the same input gives different images: %v", digests)
	}
}

// readBack checks an image of the archive and returns its digest.
func readBack(t *testing.T, file, ref string) v1.Hash {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil || config.OS != "linux" || !slices.Equal(config.Config.Entrypoint, []string{"/usr/bin/program"}) {
		t.Errorf("%s: configuration %+v, %v", ref, config, err)
	}
	content := mutate.Extract(img)
	defer content.Close()
	got := map[string]tar.Header{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = *h
	}
	names := slices.Sorted(maps.Keys(got))
	if want := []string{"bin", "bin/sh", "tmp", "usr", "usr/bin", "usr/bin/program"}; !slices.Equal(names, want) {
		t.Errorf("%s has %q, want %q", ref, names, want)
	}
	if got["bin/sh"].Linkname != "../usr/bin/program" || got["usr/bin/program"].Mode != 0o755 || got["tmp"].Mode != 0o1777 {
		t.Errorf("%s: wrong link, or wrong mode of the program or of /tmp: %+v", ref, got)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}
