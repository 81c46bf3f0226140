package build

import (
	"context"
	"path"
	"path/filepath"
)

// KubernetesVersion is what the programs of Kubernetes say they are; go.mod
// has the same.
const KubernetesVersion = "v1.36.3"

const kubernetes = "k8s.io/kubernetes/"

const ldflags = "-s -w" +
	" -X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
	" -X k8s.io/component-base/version.gitMajor=1" +
	" -X k8s.io/component-base/version.gitMinor=36" +
	" -X k8s.io/component-base/version.gitTreeState=clean"

// program is what one call of the compiler makes.
type program struct {
	Name     string // of the file where it is not the packages' last element
	Test     bool   // only for tests
	Tags     string
	Packages []string
}

var programs = []program{
	{
		// The snapshotters that are left out need cgo or programs of their own.
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

// testBinary has Kubernetes' own tests; it is the only one that go test makes.
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

// compile builds into the directory dir.
func (p program) compile(ctx context.Context, module, dir string) error {
	args := []string{"build"}
	if p.Name == testBinary {
		// Vetting the test takes minutes, and is its authors' business.
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
