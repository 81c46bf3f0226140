// Command chart generates the README of the Helm chart, and plain manifests from
// the chart. Run it in its directory. Its tests fail when it must be run again.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

const manifestsFile = "../../deploy/kubernetes/csi-dmsnap.yaml"

var readmeFile = filepath.Join(chartDir, "README.md")

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func write() error {
	files, err := generate()
	if err != nil {
		return err
	}
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the generated files by their paths.
func generate() (map[string]string, error) {
	values, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		return nil, err
	}
	text, err := readme(values)
	if err != nil {
		return nil, fmt.Errorf("README of the chart: %w", err)
	}
	plain, err := manifests()
	if err != nil {
		return nil, fmt.Errorf("plain manifests: %w", err)
	}
	return map[string]string{readmeFile: text, manifestsFile: plain}, nil
}

func readValues(path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return values, nil
}
