package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TestNodeGroups_driverOnce: each node has the driver once: with the first group that
// it matches, or else with the settings for all nodes.
func TestNodeGroups_driverOnce(t *testing.T) {
	values, err := readValues("testdata/values/groups.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files, err := render(values, snapshotAPI)
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, documents(files))
	var sets []*appsv1.DaemonSet
	configs := map[string]string{}
	var policies []labels.Selector
	for _, o := range all {
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			sets = append(sets, o)
		case *corev1.ConfigMap:
			configs[o.Name] = o.Data["config.yaml"]
		case *networkingv1.NetworkPolicy:
			s, err := metav1.LabelSelectorAsSelector(&o.Spec.PodSelector)
			if err != nil {
				t.Fatal(err)
			}
			policies = append(policies, s)
		}
	}
	for _, c := range []struct{ node, want string }{
		{"disks=nvme,tier=fast,zone=a", "csi-dmsnap-node-nvme"},
		{"disks=nvme,tier=fast,zone=c", ""},
		{"disks=nvme,zone=b", "csi-dmsnap-node"},
		{"disks=none,tier=fast,zone=b", "csi-dmsnap-node-trial"},
		{"zone=a", "csi-dmsnap-node"},
		{"zone=c", ""},
	} {
		node, err := labels.ConvertSelectorToLabelsMap(c.node + ",kubernetes.io/os=linux")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range sets {
			if runsOn(t, s.Spec.Template.Spec, node) {
				got = append(got, s.Name)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("a node with %s has %v, want %s", c.node, got, c.want)
		}
	}
	args := one[*appsv1.Deployment](t, all).Spec.Template.Spec.Containers[0].Args
	if !slices.Contains(args, "--node-daemonset=csi-dmsnap-node,csi-dmsnap-node-nvme,csi-dmsnap-node-trial") {
		t.Errorf("%v", args)
	}
	at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--node-selector=") })
	selector, err := labels.Parse(strings.TrimPrefix(args[at], "--node-selector="))
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range sets {
		pod := labels.Set(s.Spec.Template.Labels)
		if !selector.Matches(pod) || !slices.ContainsFunc(policies, func(p labels.Selector) bool { return p.Matches(pod) }) {
			t.Errorf("%s: the controller or the policy does not know %v", s.Name, pod)
		}
		for j, o := range sets {
			match, err := metav1.LabelSelectorAsSelector(o.Spec.Selector)
			if err != nil || match.Matches(pod) != (i == j) {
				t.Errorf("%s selects a pod of %s: %v", o.Name, s.Name, err)
			}
		}
	}
	if c := configs["csi-dmsnap-node-nvme"]; !strings.Contains(c, "name: fast") || !strings.Contains(c, "optional: true") || strings.Contains(c, "trial") {
		t.Errorf("pools of nvme:\n%s", c)
	}
	if c := configs["csi-dmsnap-node"]; strings.Contains(c, "fast") || !strings.Contains(c, "large") {
		t.Errorf("pools of the others:\n%s", c)
	}
	nvme, trial := sets[1].Spec.Template.Spec, sets[2].Spec.Template
	if nvme.Tolerations[0].Key != "dedicated" || nvme.Containers[0].Resources.Limits.Memory().String() != "1Gi" {
		t.Errorf("nvme: %v", nvme)
	}
	if trial.Spec.Tolerations[0].Operator != corev1.TolerationOpExists || trial.Labels["trial"] != "yes" ||
		!slices.ContainsFunc(trial.Spec.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == "/srv/trial" }) {
		t.Errorf("trial: %v", trial)
	}
}

// TestNodeGroups_upgrade: when groups are added to a release, only the placement of
// its DaemonSet changes: Kubernetes refuses changes of some other fields.
func TestNodeGroups_upgrade(t *testing.T) {
	find := func(values string) *appsv1.DaemonSet {
		for _, o := range rendered(t, values) {
			if s, ok := o.(*appsv1.DaemonSet); ok && s.Name == "csi-dmsnap-node" {
				return s
			}
		}
		return nil
	}
	before := find("pools: [{name: a}]")
	after := find("pools: [{name: a}]\nnodeGroups: [{name: g, nodeSelector: {disks: none}, pools: [{name: b}]}]")
	if before.Spec.Selector.String() != after.Spec.Selector.String() || before.Spec.Template.Annotations["checksum/config"] != after.Spec.Template.Annotations["checksum/config"] {
		t.Errorf("%v, then %v", before.Spec.Selector, after.Spec.Selector)
	}
	after.Spec.Template.Spec.Affinity = nil
	if !reflect.DeepEqual(before, after) {
		t.Error("more has changed than the DaemonSet's placement")
	}
	if s := find("nodeGroups: [{name: g, nodeSelector: {disks: none}, pools: [{name: b}]}]\nstorageClasses: []"); s != nil {
		t.Errorf("without pools for the other nodes, there is the DaemonSet %s", s.Name)
	}
}

// runsOn reports whether a DaemonSet's pod may run on a node with these labels.
func runsOn(t *testing.T, pod corev1.PodSpec, node labels.Set) bool {
	t.Helper()
	if !labels.SelectorFromSet(pod.NodeSelector).Matches(node) {
		return false
	}
	if pod.Affinity == nil || pod.Affinity.NodeAffinity == nil {
		return true
	}
	for _, term := range pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		fits := true
		for _, e := range term.MatchExpressions {
			s, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: e.Key, Operator: metav1.LabelSelectorOperator(e.Operator), Values: e.Values},
			}})
			if err != nil {
				t.Fatal(err)
			}
			fits = fits && s.Matches(node)
		}
		if fits {
			return true
		}
	}
	return false
}
