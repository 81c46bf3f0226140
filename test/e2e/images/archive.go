// Package images makes container images of single programs, and keeps their
// archives for the nodes: the tests' cluster has no registry.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is an image with one layer.
type Image struct {
	Names      []string          // complete references
	Files      map[string]string // path in the image to an executable file of the host
	Links      map[string]string // path in the image to the target of the link
	Entrypoint []string
	Cmd        []string
}

// Write writes the image's archive, as docker save does. The same input gives
// the same image.
func (i *Image) Write(file string) error {
	data, err := i.layer()
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Entrypoint, config.Config.Cmd = i.Entrypoint, i.Cmd
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	tags := map[name.Tag]v1.Image{}
	for _, n := range i.Names {
		tag, err := name.NewTag(n)
		if err != nil {
			return fmt.Errorf("image name %q: %w", n, err)
		}
		tags[tag] = img
	}
	return tarball.MultiWriteToFile(file, tags)
}

// layer returns the image's only layer, a tar archive.
func (i *Image) layer() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	paths := []string{"/tmp"}
	for p := range i.Files {
		paths = append(paths, p)
	}
	for p := range i.Links {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	made := map[string]bool{"/": true}
	for _, p := range paths {
		if err := directories(w, path.Dir(p), made); err != nil {
			return nil, err
		}
		if err := i.entry(w, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func (i *Image) entry(w *tar.Writer, p string) error {
	header := tar.Header{Name: strings.TrimPrefix(p, "/"), Mode: 0o755}
	if target, ok := i.Links[p]; ok {
		header.Typeflag, header.Linkname = tar.TypeSymlink, target
		return w.WriteHeader(&header)
	}
	file, ok := i.Files[p]
	if !ok {
		header.Typeflag, header.Mode = tar.TypeDir, 0o1777
		return w.WriteHeader(&header)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, int64(len(data))
	if err := w.WriteHeader(&header); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func directories(w *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := directories(w, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755})
}
