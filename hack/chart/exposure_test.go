package main

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestNetworkPolicies_closed: the network policies admit only the controller to the
// nodes' port, and only the configured peers to the metrics.
func TestNetworkPolicies_closed(t *testing.T) {
	for values, scraper := range map[string]bool{
		"pools: [{name: a}]\n": false,
		"pools: [{name: a}]\nnetworkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {a: b}}}]}\n": true,
	} {
		found := 0
		for _, o := range rendered(t, values) {
			p, ok := o.(*networkingv1.NetworkPolicy)
			if !ok {
				continue
			}
			found++
			if !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
				t.Errorf("%s does not limit incoming connections", p.Name)
			}
			open := false
			for _, r := range p.Spec.Ingress {
				if len(r.From) == 0 || len(r.Ports) == 0 {
					t.Errorf("%s: a rule for everybody or for all ports: %v", p.Name, r)
				}
				open = open || slices.ContainsFunc(r.Ports, func(p networkingv1.NetworkPolicyPort) bool { return *p.Port == intstr.FromString("http") })
			}
			if open != scraper {
				t.Errorf("%s: scraping is possible: %t, want %t", p.Name, open, scraper)
			}
		}
		if found != 2 {
			t.Errorf("%d policies", found)
		}
	}
}

// TestContainers_probesAndMemoryLimit: both roles answer probes at a separate port,
// and Go knows the memory limit.
func TestContainers_probesAndMemoryLimit(t *testing.T) {
	all := rendered(t, "pools: [{name: a}]\n")
	for _, pod := range []corev1.PodSpec{one[*appsv1.DaemonSet](t, all).Spec.Template.Spec, one[*appsv1.Deployment](t, all).Spec.Template.Spec} {
		c := pod.Containers[0]
		if c.Name != "csi-dmsnap" || !slices.Contains(c.Args, "--probes=:9807") {
			t.Errorf("%s %v", c.Name, c.Args)
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if p != nil && p.HTTPGet.Port != intstr.FromString("probes") {
				t.Errorf("%s is probed at %v", c.Name, p.HTTPGet.Port)
			}
		}
		var limit, source bool
		for _, e := range c.Env {
			switch {
			case e.Name == "GOMEMLIMIT":
				limit = source && strings.HasPrefix(e.Value, "$(MEMORY_MIB)") // only variables above it are expanded
			case e.Name == "MEMORY_MIB":
				r := e.ValueFrom.ResourceFieldRef
				source = r.Resource == "limits.memory" && r.Divisor.String() == "1Mi" && r.ContainerName == c.Name
			}
		}
		if !limit || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("no memory limit: %v", c.Env)
		}
	}
}
