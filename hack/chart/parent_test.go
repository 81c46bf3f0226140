package main

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
)

// inParent renders the chart as a dependency of another chart, as helm does.
func inParent(t *testing.T, text string) map[string]string {
	t.Helper()
	sub, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	parent := &chart.Chart{Metadata: &chart.Metadata{
		APIVersion: "v2", Name: "platform", Version: "1.0.0",
		Dependencies: []*chart.Dependency{{Name: "csi-dmsnap", Version: "*", Condition: "csi-dmsnap.enabled", Tags: []string{"storage"}}},
	}}
	parent.SetDependencies(sub)
	values, err := parseValues(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := chartutil.ProcessDependencies(parent, values); err != nil {
		t.Fatal(err)
	}
	all, err := util.ToRenderValues(parent, values, common.ReleaseOptions{Name: "platform", Namespace: "ns"}, common.DefaultCapabilities.Copy())
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	files, err := engine.Render(parent, all)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestSubchart_parentValues: a parent chart turns the chart on and off, and its global
// values take effect.
func TestSubchart_parentValues(t *testing.T) {
	pools := "pools: [{name: a}]"
	for text, want := range map[string]bool{
		"csi-dmsnap: {" + pools + "}":                                 true,
		"csi-dmsnap: {enabled: true, " + pools + "}":                  true,
		"csi-dmsnap: {enabled: false}":                                false,
		"tags: {storage: true}\ncsi-dmsnap: {" + pools + "}":          true,
		"global: {theirs: {x: 1}}\ncsi-dmsnap: {" + pools + "}":       true,
		"global: {imageRegistry: null}\ncsi-dmsnap: {" + pools + "}":  true,
		"csi-dmsnap: {enabled: false, global: {a: b}, " + pools + "}": false,
	} {
		files := inParent(t, text)
		if got := len(files) > 0; got != want {
			t.Errorf("%s: rendered: %t", text, got)
		}
	}
	files := inParent(t, `
global: {imageRegistry: registry.example:5000, imagePullSecrets: [all, {name: more}]}
csi-dmsnap:
  enabled: true
  pools: [{name: a}]
  imagePullSecrets: [{name: more}, {name: own}]
  resizer: {image: {repository: local/resizer}}
`)
	var text strings.Builder
	for name, f := range files {
		if strings.HasSuffix(name, "node-daemonset.yaml") || strings.HasSuffix(name, "deployment.yaml") {
			text.WriteString("---\n" + strings.TrimPrefix(strings.TrimSpace(f), "---\n") + "\n")
		}
	}
	all := objects(t, text.String())
	images := map[string]bool{}
	for _, pod := range []corev1.PodSpec{one[*appsv1.DaemonSet](t, all).Spec.Template.Spec, one[*appsv1.Deployment](t, all).Spec.Template.Spec} {
		for _, c := range pod.Containers {
			image, _, _ := strings.Cut(strings.TrimPrefix(c.Image, "registry.example:5000/"), ":")
			images[image] = strings.HasPrefix(c.Image, "registry.example:5000/")
		}
		var secrets []string
		for _, s := range pod.ImagePullSecrets {
			secrets = append(secrets, s.Name)
		}
		if strings.Join(secrets, " ") != "all more own" {
			t.Errorf("secrets %v", secrets)
		}
	}
	for _, image := range []string{"csi-dmsnap/csi-dmsnap", "sig-storage/csi-provisioner", "sig-storage/csi-snapshotter", "local/resizer"} {
		if !images[image] {
			t.Errorf("%s is not from the registry: %v", image, images)
		}
	}
}

// TestClasses_metadata: classes have the labels and parameters that backup programs
// look for, and only one class is the default, however the values say so.
func TestClasses_metadata(t *testing.T) {
	values := `
pools: [{name: a}]
storageClasses:
- name: px
  labels: {backup: "yes", app.kubernetes.io/name: mine}
  annotations: {storageclass.kubernetes.io/is-default-class: "true", note: mine}
volumeSnapshotClasses:
- name: px
  isDefault: true
  labels: {velero.io/csi-volumesnapshot-class: "true"}
  annotations: {k10.kasten.io/is-snapshot-class: "true", snapshot.storage.kubernetes.io/is-default-class: "true"}
  parameters: {csi.storage.k8s.io/snapshotter-secret-name: x}
`
	parsed, err := parseValues(values)
	if err != nil {
		t.Fatal(err)
	}
	files, err := render(parsed, snapshotAPI)
	if err != nil {
		t.Fatal(err)
	}
	defaults := 0
	for _, o := range objects(t, documents(files)) {
		if c, ok := o.(*storagev1.StorageClass); ok {
			if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
				defaults++
			}
			if c.Labels["backup"] != "yes" || c.Labels["app.kubernetes.io/name"] != "csi-dmsnap" || c.Annotations["note"] != "mine" {
				t.Errorf("%s: %v, %v", c.Name, c.Labels, c.Annotations)
			}
		}
	}
	if defaults != 1 {
		t.Errorf("%d default classes", defaults)
	}
	class, err := parseValues(strings.TrimPrefix(files["volumesnapshotclasses.yaml"], "---\n")) // refuses duplicate keys
	if err != nil {
		t.Fatal(err)
	}
	about := class["metadata"].(map[string]any)
	if about["labels"].(map[string]any)["velero.io/csi-volumesnapshot-class"] != "true" || len(about["annotations"].(map[string]any)) != 2 || class["parameters"] == nil {
		t.Errorf("%v", class)
	}
}

// TestNotes_pasteable: each command of the notes can be pasted.
func TestNotes_pasteable(t *testing.T) {
	for _, file := range []string{"testdata/values/groups.yaml", "testdata/values/everything.yaml"} {
		values, err := readValues(file)
		if err != nil {
			t.Fatal(err)
		}
		files, err := render(values) // without the snapshot API the notes have every command
		if err != nil {
			t.Fatal(err)
		}
		commands := 0
		for line := range strings.Lines(files["NOTES.txt"]) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "kubectl ") && !strings.Contains(line, "helm ") {
				continue
			}
			commands++
			whole := strings.HasPrefix(line, "kubectl apply -") || strings.HasPrefix(line, "kubectl -n csi-dmsnap ")
			if strings.Contains(line, " exec ") {
				whole = whole && strings.Contains(line, " -c csi-dmsnap -- ")
			}
			if strings.Contains(line, "rollout status") {
				whole = whole && strings.Count(line, "/") == 1 // it takes a single object
			}
			if !whole || strings.Contains(line, "…") {
				t.Errorf("%s: %s", file, line)
			}
		}
		if commands < 6 {
			t.Errorf("only %d commands", commands)
		}
		_, manifest, found := strings.Cut(files["NOTES.txt"], "<<'END'\n")
		manifest, _, ended := strings.Cut(manifest, "\nEND\n")
		if !found || !ended || !strings.HasPrefix(manifest, "---\n") {
			t.Fatalf("%s: no classes in\n%s", file, files["NOTES.txt"])
		}
		objects(t, manifest)
	}
}
