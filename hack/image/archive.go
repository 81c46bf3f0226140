package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// writeArchive writes the image as an OCI image layout in a tar file. The
// archive also has the manifest.json that older versions of docker load need.
// containerd takes the image's name from the annotation in the index.
func writeArchive(path, reference string, img v1.Image) (err error) {
	ref, err := name.NewTag(reference, name.StrictValidation)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name())
			return
		}
		err = errors.Join(os.Chmod(f.Name(), 0o644), os.Rename(f.Name(), path))
	}()
	out := tar.NewWriter(f)
	if err := writeLayout(out, ref, img); err != nil {
		return err
	}
	return out.Close()
}

func writeLayout(out *tar.Writer, ref name.Tag, img v1.Image) error {
	put := func(name string, size int64, r io.Reader) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: epoch, Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := io.Copy(out, r)
		return err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	configName, err := img.ConfigName()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	descriptor, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	configFile, err := img.ConfigFile()
	if err != nil {
		return err
	}
	descriptor.Platform = configFile.Platform()
	descriptor.Annotations = map[string]string{
		"io.containerd.image.name":          ref.Name(),
		"org.opencontainers.image.ref.name": ref.TagStr(),
	}
	docker := []map[string]any{{"Config": blob(configName), "RepoTags": []string{ref.Name()}}}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	var layerNames []string
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		err = errors.Join(put(blob(digest), size, r), r.Close())
		if err != nil {
			return err
		}
		layerNames = append(layerNames, blob(digest))
	}
	docker[0]["Layers"] = layerNames
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []v1.Descriptor{*descriptor}}
	for _, f := range []struct {
		name    string
		content any // bytes, or a value to encode as JSON
	}{
		{blob(configName), config},
		{blob(descriptor.Digest), manifest},
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", index},
		{"manifest.json", docker},
	} {
		text, ok := f.content.([]byte)
		if !ok {
			if text, err = json.Marshal(f.content); err != nil {
				return err
			}
		}
		if err := put(f.name, int64(len(text)), bytes.NewReader(text)); err != nil {
			return err
		}
	}
	return nil
}
