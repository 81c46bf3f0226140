package build

import (
	"context"
	"path"
	"path/filepath"
)

// KubernetesVersion is the version that the programs of Kubernetes report.
// go.mod has the same version.
const KubernetesVersion = "v1.36.3"

const kubernetes = "k8s.io/kubernetes/"

const ldflags = "-s -w" +
	" -X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
	" -X k8s.io/component-base/version.gitMajor=1" +
	" -X k8s.io/component-base/version.gitMinor=36" +
	" -X k8s.io/component-base/version.gitTreeState=clean"

// program is one call of the compiler, which builds one or more programs.
type program struct {
	Name     string // of the file, if it is not the last element of the package's path
	Test     bool   // only for tests
	Tags     string
	Packages []string
}

var programs = []program{
	{
		// The excluded snapshotters need cgo or additional programs.
		Tags: "no_btrfs no_zfs no_devmapper no_aufs",
		Packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
	},
	{Name: "etcd", Packages: []string{"go.etcd.io/etcd/server/v3"}},
	{Packages: []string{
		kubernetes + "cmd/kube-apiserver",
		kubernetes + "cmd/kube-controller-manager",
		kubernetes + "cmd/kube-scheduler",
		kubernetes + "cmd/kubectl",
		kubernetes + "cmd/kubelet",
	}},
	{Packages: []string{
		"github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
		"github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
		"github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
		"github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
		"helm.sh/helm/v4/cmd/helm",
		kubernetes + "test/images/agnhost",
	}},
	{Test: true, Packages: []string{"github.com/onsi/ginkgo/v2/ginkgo"}},
	{Name: testBinary, Test: true, Packages: []string{kubernetes + "test/e2e"}},
}

// testBinary has Kubernetes' own tests. It is the only program that go test
// builds.
const testBinary = "e2e.test"

// names returns the programs' file names.
func (p program) names() []string {
	if p.Name != "" {
		return []string{p.Name}
	}
	var names []string
	for _, pkg := range p.Packages {
		names = append(names, path.Base(pkg))
	}
	return names
}

// compile builds the programs into the directory dir.
func (p program) compile(ctx context.Context, module, dir string) error {
	args := []string{"build"}
	if p.Name == testBinary {
		// Vetting takes minutes, and is the task of the tests' authors.
		args = []string{"test", "-c", "-vet=off"}
	}
	out := dir + "/"
	if p.Name != "" {
		out = filepath.Join(dir, p.Name)
	}
	args = append(args, "-buildvcs=false", "-trimpath", "-ldflags="+ldflags, "-tags="+p.Tags, "-o", out)
	_, err := run(ctx, module, "go", append(args, p.Packages...)...)
	return err
}
