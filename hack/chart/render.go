package main

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

// chartDir is the chart's directory, relative to this one.
const chartDir = "../../deploy/helm/csi-dmsnap"

// snapshotAPI is the API that a cluster with the snapshot CRDs offers.
const snapshotAPI = "snapshot.storage.k8s.io/v1"

// render renders the chart as helm install does, with csi-dmsnap as namespace and
// release name. values override the chart's own. The cluster offers apis besides
// Kubernetes' own. The keys of the result are file names.
func render(values map[string]any, apis ...string) (map[string]string, error) {
	chart, err := loader.Load(chartDir)
	if err != nil {
		return nil, err
	}
	capabilities := common.DefaultCapabilities.Copy()
	version, err := common.ParseKubeVersion("v1.36.0")
	if err != nil {
		return nil, err
	}
	capabilities.KubeVersion = *version
	capabilities.APIVersions = append(slices.Clone(capabilities.APIVersions), apis...)
	options := common.ReleaseOptions{Name: "csi-dmsnap", Namespace: "csi-dmsnap", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, values, options, capabilities)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for name, text := range rendered {
		if text = strings.TrimSpace(text); text != "" {
			files[path.Base(name)] = text + "\n"
		}
	}
	return files, nil
}

// documents joins the rendered manifests, without the notes, in the order of their
// files' names.
func documents(files map[string]string) string {
	var names []string
	for name := range files {
		if path.Ext(name) == ".yaml" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var all strings.Builder
	for _, name := range names {
		fmt.Fprintf(&all, "---\n# Source: %s\n%s", name, strings.TrimPrefix(files[name], "---\n"))
	}
	return all.String()
}

// example reads one of the chart's examples.
func example(name string) (map[string]any, error) {
	return readValues(filepath.Join(chartDir, "examples", name))
}

func parseValues(text string) (map[string]any, error) {
	values := map[string]any{}
	return values, yaml.UnmarshalStrict([]byte(text), &values)
}
