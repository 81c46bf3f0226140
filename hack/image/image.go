package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// programPath is the path of the binary in the image.
const programPath = "usr/bin/csi-dmsnap"

// machines maps architectures to those in ELF headers.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// programTree returns the tree of the static binary. It refuses a binary of
// another architecture or with a loader.
func programTree(arch, binary string) (tree, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if f.Machine != machines[arch] {
		return nil, fmt.Errorf("the binary is for %v, not for %s", f.Machine, arch)
	}
	if _, loader, err := linkedWith(content); err != nil || loader != "" {
		return nil, errors.Join(err, fmt.Errorf("the binary is not static; build it with CGO_ENABLED=0"))
	}
	t := tree{}
	t.add(programPath, file{mode: 0o755, content: content})
	return t, nil
}

// assemble makes the image with one layer for each tree, and the configuration
// that runs the program.
func assemble(arch, reference string, trees ...tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, t := range trees {
		var packed bytes.Buffer
		if err := t.writeTar(&packed); err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
		layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer),
			tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{
			Created: v1.Time{Time: epoch}, CreatedBy: "hack/image"}}); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: epoch}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + programPath},
		Env:        []string{"PATH=/usr/sbin:/usr/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    "csi-dmsnap",
			"org.opencontainers.image.source":   "https://github.com/csi-dmsnap/csi-dmsnap",
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.version":  tag(reference),
		},
	}
	return mutate.ConfigFile(img, config)
}

// tag returns the tag of an image's name, or "" if the name has none.
func tag(reference string) string {
	i := strings.LastIndex(reference, ":")
	if i < strings.LastIndex(reference, "/") {
		return ""
	}
	return reference[i+1:]
}

// report prints the archive's name, its digest and its size.
func report(w io.Writer, archive string, img v1.Image) error {
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	var sum int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return err
		}
		sum += n
	}
	_, err = fmt.Fprintf(w, "%s: %s, %.1f MB compressed\n", archive, digest, float64(sum)/1e6)
	return err
}
