package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// objects decodes the rendered manifests as the API server would, and refuses fields
// that the API server would drop. It leaves custom resources out.
func objects(t *testing.T, text string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	var all []runtime.Object
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(document, nil, nil)
		switch {
		case runtime.IsNotRegisteredError(err):
			if !strings.Contains(string(document), "snapshot.storage.k8s.io/v1\n") && !strings.Contains(string(document), "cert-manager.io/v1\n") {
				t.Errorf("unknown kind:\n%s", document)
			}
		case err != nil:
			t.Errorf("%v in\n%s", err, document)
		default:
			all = append(all, object)
		}
	}
}

// rendered returns the objects for the given values.
func rendered(t *testing.T, values string) []runtime.Object {
	t.Helper()
	parsed, err := parseValues(values)
	if err != nil {
		t.Fatal(err)
	}
	files, err := render(parsed, snapshotAPI)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, documents(files))
}

// one returns the object of its type.
func one[T runtime.Object](t *testing.T, all []runtime.Object) T {
	t.Helper()
	var found []T
	for _, o := range all {
		if typed, ok := o.(T); ok {
			found = append(found, typed)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of %T", len(found), *new(T))
	}
	return found[0]
}

// TestObjects_valid: every object has only fields that the API server knows.
func TestObjects_valid(t *testing.T) {
	for _, file := range []string{"testdata/values/everything.yaml", "testdata/values/k0s.yaml"} {
		values, err := readValues(file)
		if err != nil {
			t.Fatal(err)
		}
		files, err := render(values, snapshotAPI)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(objects(t, documents(files))); n < 10 {
			t.Errorf("%s: only %d objects", file, n)
		}
	}
}

// TestExamples_fitDefaults: the examples that the README applies use the classes that
// the chart makes by default.
func TestExamples_fitDefaults(t *testing.T) {
	classes := map[string]bool{}
	for _, o := range rendered(t, "pools: [{name: a}]") {
		if c, ok := o.(*storagev1.StorageClass); ok {
			classes[c.Name] = true
		}
	}
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects(t, string(text)) {
			if c, ok := o.(*corev1.PersistentVolumeClaim); ok && !classes[*c.Spec.StorageClassName] {
				t.Errorf("%s: no class %s", file, *c.Spec.StorageClassName)
			}
		}
	}
}

// TestController_confined: the controller and the sidecars have no privilege. To add
// one, change this test and docs/security.md.
func TestController_confined(t *testing.T) {
	pod := one[*appsv1.Deployment](t, rendered(t, "pools: [{name: a}]")).Spec.Template.Spec
	if s := pod.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security context of the pod: %v", s)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the pod uses namespaces of the host")
	}
	if len(pod.Containers) != 4 {
		t.Errorf("%d containers", len(pod.Containers))
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.Privileged != nil || len(s.Capabilities.Add) > 0 ||
			!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("security context of %s: %v", c.Name, s)
		}
	}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			t.Errorf("volume %s is a path of the host", v.Name)
		}
	}
}

// TestNodePod_paths: the node's pod sees the kubelet's paths as the host does.
func TestNodePod_paths(t *testing.T) {
	set := one[*appsv1.DaemonSet](t, rendered(t, "pools: [{name: a, file: /srv/x/a.img, size: 1Gi}]\nkubeletDir: /data/kubelet"))
	pod := set.Spec.Template.Spec
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatalf("%d containers", len(pod.Containers))
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("the pod uses namespaces of the host")
	}
	if *pod.AutomountServiceAccountToken {
		t.Error("the token for the API is mounted")
	}
	paths := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			paths[v.Name] = v.HostPath.Path
		}
	}
	want := []string{"/data/kubelet", "/dev", "/etc", "/run/csi-dmsnap", "/run/lock/lvm", "/run/lvm", "/run/udev", "/srv/x", "/sys/fs"}
	var got []string
	for _, m := range pod.Containers[0].VolumeMounts {
		path, ok := paths[m.Name]
		if !ok {
			continue
		}
		got = append(got, path)
		if path != m.MountPath && (path != "/etc" || m.MountPath != "/host/etc") {
			t.Errorf("%s of the host is mounted at %s", path, m.MountPath)
		}
		bidirectional := m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional
		if bidirectional != (path == "/data/kubelet") {
			t.Errorf("%s: propagation %v", path, m.MountPropagation)
		}
		if m.ReadOnly != (path == "/run/udev") {
			t.Errorf("%s: read-only is %v", path, m.ReadOnly)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("paths of the host: %v, want %v", got, want)
	}
	if env := (corev1.EnvVar{Name: "LVM_SYSTEM_DIR", Value: "/host/etc/lvm"}); !slices.Contains(pod.Containers[0].Env, env) {
		t.Errorf("LVM_SYSTEM_DIR does not name the host's configuration of lvm2: %v", pod.Containers[0].Env)
	}
	for _, v := range pod.Volumes { // some hosts cannot create a missing path
		if p := v.HostPath; p != nil && strings.HasPrefix(p.Path, "/etc") && *p.Type != corev1.HostPathDirectory {
			t.Errorf("%s of the host as %v", p.Path, *p.Type)
		}
	}
	for _, arg := range []string{
		"--kubelet-dir=/data/kubelet",
		"--endpoint=unix:///data/kubelet/plugins/dmsnap.csi-dmsnap.github.io/csi.sock",
	} {
		if !slices.Contains(pod.Containers[0].Args, arg) {
			t.Errorf("no %s in %v", arg, pod.Containers[0].Args)
		}
	}
}

// TestRoles_limited: no role is bound to the nodes, and no role allows everything.
func TestRoles_limited(t *testing.T) {
	subjects := func(name string, all []rbacv1.Subject) {
		for _, s := range all {
			if s.Name != "csi-dmsnap-controller" || s.Namespace != "csi-dmsnap" {
				t.Errorf("%s is bound to %s/%s", name, s.Namespace, s.Name)
			}
		}
	}
	rules := func(name string, all []rbacv1.PolicyRule, namespaced bool) {
		for _, r := range all {
			if slices.Contains(r.Verbs, "*") || slices.Contains(r.Resources, "*") || slices.Contains(r.APIGroups, "*") {
				t.Errorf("%s has a wildcard: %v", name, r)
			}
			secrets := slices.Contains(r.Resources, "secrets") && !slices.Equal(r.Verbs, []string{"create"})
			if secrets && (!namespaced || len(r.ResourceNames) == 0) {
				t.Errorf("%s reads Secrets: %v", name, r)
			}
		}
	}
	seen := 0
	for _, o := range rendered(t, "pools: [{name: a}]") {
		seen++
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			rules(o.Name, o.Rules, false)
		case *rbacv1.Role:
			rules(o.Name, o.Rules, true)
		case *rbacv1.ClusterRoleBinding:
			subjects(o.Name, o.Subjects)
		case *rbacv1.RoleBinding:
			subjects(o.Name, o.Subjects)
		default:
			seen--
		}
	}
	if seen < 12 {
		t.Errorf("only %d objects were checked", seen)
	}
}

// TestStorageClasses_rendered: each class of the values becomes a StorageClass, with
// its twin for restores.
func TestStorageClasses_rendered(t *testing.T) {
	all := rendered(t, "pools: [{name: a}]\nstorageClasses: [{name: px, pool: a}, {name: py, restoreClass: false}, {name: pz, volumeBindingMode: Immediate, allowVolumeExpansion: false}]")
	binding := map[string]storagev1.VolumeBindingMode{}
	for _, o := range all {
		c, ok := o.(*storagev1.StorageClass)
		if !ok {
			continue
		}
		binding[c.Name] = *c.VolumeBindingMode
		if got := *c.AllowVolumeExpansion; got == (c.Name == "pz") {
			t.Errorf("%s: expansion %v", c.Name, got)
		}
		if got := c.Parameters["pool"]; (got == "a") != strings.HasPrefix(c.Name, "px") {
			t.Errorf("%s: pool %q", c.Name, got)
		}
	}
	const wait, now = storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	want := map[string]storagev1.VolumeBindingMode{"px": wait, "px-restore": now, "py": wait, "pz": now}
	if len(binding) != len(want) {
		t.Errorf("%v, want %v", binding, want)
	}
	for name, mode := range want {
		if binding[name] != mode {
			t.Errorf("%s: %q, want %q", name, binding[name], mode)
		}
	}
	// With several pools, a class only for copies needs no pool.
	for _, class := range []string{"{name: x, volumeBindingMode: Immediate}", "{name: x, parameters: {transient: 'true'}}", "{name: x, pool: b}"} {
		if all := rendered(t, "pools: [{name: a}, {name: b}]\nstorageClasses: ["+class+"]"); len(all) == 0 {
			t.Errorf("%s: nothing is rendered", class)
		}
	}
}

// TestSELinux_mounts: with seLinuxMount the kubelet knows that volumes can be mounted
// with a label, and mount finds out whether the host has SELinux. On a host without
// SELinux nothing is made in /sys, where nobody can, or in /etc, which may be
// read-only.
func TestSELinux_mounts(t *testing.T) {
	for values, want := range map[string]bool{"": true, "seLinuxMount: false\n": false} {
		all := rendered(t, values+"pools: [{name: a, file: /srv/x/a.img, size: 1Gi}]")
		if got := one[*storagev1.CSIDriver](t, all).Spec.SELinuxMount; got == nil || *got != want {
			t.Errorf("%q: seLinuxMount is %v", values, got)
		}
		found := 0
		for _, v := range one[*appsv1.DaemonSet](t, all).Spec.Template.Spec.Volumes {
			switch p := v.HostPath; {
			case p == nil:
			case p.Path == "/sys/fs" && *p.Type == corev1.HostPathDirectory:
				found++
			case strings.HasPrefix(p.Path, "/sys"), strings.HasPrefix(p.Path, "/etc/"):
				t.Errorf("%s of the host as %v: the kubelet or the runtime would try to make it", p.Path, *p.Type)
			}
		}
		if found != 1 && want || found != 0 && !want {
			t.Errorf("%q: %d paths of SELinux", values, found)
		}
	}
}
