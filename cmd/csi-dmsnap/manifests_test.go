package main

import (
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The program accepts the arguments and the configuration that the chart gives it.
func TestManifests_accepted(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kubernetes/csi-dmsnap.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var kind struct{ Kind string }
		var pod corev1.PodSpec
		decode := func(object any) {
			t.Helper()
			if err := yaml.Unmarshal([]byte(document), object); err != nil {
				t.Fatal(err)
			}
		}
		decode(&kind)
		switch kind.Kind {
		case "ConfigMap":
			var c corev1.ConfigMap
			decode(&c)
			if _, err := parseConfig([]byte(c.Data["config.yaml"])); err != nil {
				t.Errorf("pools: %v", err)
			}
			found["config"] = true
		case "Deployment":
			var d appsv1.Deployment
			decode(&d)
			pod = d.Spec.Template.Spec
		case "DaemonSet":
			var d appsv1.DaemonSet
			decode(&d)
			pod = d.Spec.Template.Spec
		}
		for _, c := range pod.Containers {
			if c.Name != "csi-dmsnap" {
				continue
			}
			role, rest, err := command().Find(c.Args)
			if err != nil {
				t.Fatal(err)
			}
			if err := role.ParseFlags(rest); err != nil {
				t.Errorf("%s: %v", role.Name(), err)
			}
			if err := role.ValidateRequiredFlags(); err != nil {
				t.Errorf("%s: %v", role.Name(), err)
			}
			found[role.Name()] = true
		}
	}
	if !found["node"] || !found["controller"] || !found["config"] {
		t.Errorf("only %v in the manifests", found)
	}
}
