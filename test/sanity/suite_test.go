//go:build kernel || cluster

package sanity

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// passing is the number of specs that must run and pass, in both modes together.
const passing = 156

// notRun has the specs that do not run, by a part of their names, and the
// reason.
var notRun = []struct{ spec, reason string }{
	{"ControllerPublishVolume", "a local volume is not attached: PUBLISH_UNPUBLISH_VOLUME is not claimed"},
	{"ControllerUnpublishVolume", "a local volume is not attached"},
	{"volume lifecycle", "a local volume is not attached; the Node Service's specs run the same life without attaching"},
	{"ModifyVolume", "no parameter of a volume can be changed: MODIFY_VOLUME is not claimed"},
	{"volume attribute class", "no parameter of a volume can be changed"},
	{"GroupController", "GROUP_CONTROLLER_SERVICE is not claimed yet"},
	{"pagination should detect volumes added between pages", "disabled in csi-test; the driver's own tests cover it"},
}

// run runs the suite with file systems and with block devices, and checks the
// report. The interceptors in more may change the suite's requests.
func run(t *testing.T, node, controller, dir string, more ...grpc.UnaryClientInterceptor) {
	for _, mode := range []string{"mount", "block"} {
		config := sanity.NewTestConfig()
		config.Address, config.ControllerAddress = node, controller
		config.TargetPath = filepath.Join(dir, mode+"-target")
		config.StagingPath = filepath.Join(dir, mode+"-staging")
		interceptors := grpc.WithChainUnaryInterceptor(append(more, sizeTopology)...)
		config.DialOptions = append(config.DialOptions, interceptors)
		config.ControllerDialOptions = append(config.ControllerDialOptions, interceptors)
		config.TestVolumeAccessType = mode
		config.TestVolumeSize = int64(64 * size.MiB)
		config.TestVolumeExpandSize = int64(128 * size.MiB)
		ginkgo.Describe(mode, func() { sanity.GinkgoTest(&config) })
	}
	var report types.Report
	ginkgo.ReportAfterSuite("keep the report", func(r ginkgo.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-sanity")
	check(t, report)
}

// sizeTopology fills in the cached size of the topology in a reply. The spec
// "creating a snapshot with accessibility requirements" compares the topology
// by reflection with a message that has been sent, whose size is therefore
// cached. Without this interceptor no driver that returns a topology could
// pass.
func sizeTopology(ctx context.Context, method string, request, reply any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, reply, c, options...)
	if r, ok := reply.(*csi.CreateSnapshotResponse); ok {
		proto.Size(r)
	}
	return err
}

// check compares the specs that passed with those that must pass: a suite that
// skips silently proves nothing.
func check(t *testing.T, report types.Report) {
	t.Helper()
	passed, used := 0, make([]bool, len(notRun))
next:
	for _, s := range report.SpecReports {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		if s.State == types.SpecStatePassed {
			passed++
			continue
		}
		for i, n := range notRun {
			if strings.Contains(s.FullText(), n.spec) {
				used[i] = true
				continue next
			}
		}
		t.Errorf("%s: %s %s", s.State, s.FullText(), s.FailureMessage())
	}
	for i, n := range notRun {
		if !used[i] {
			t.Errorf("no spec was skipped for %q: remove it from the list", n.spec)
		}
	}
	if passed != passing {
		t.Errorf("%d specs passed, not %d", passed, passing)
	}
	t.Logf("%d specs passed", passed)
}
