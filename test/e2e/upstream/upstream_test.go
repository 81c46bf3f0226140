package upstream

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
)

// specs has names of specs in Kubernetes v1.36.3, with the suite and the
// selection expected for each.
const prefix = "[It] External Storage [Driver: dmsnap.csi-dmsnap.github.io] [Testpattern: "

var specs = []struct {
	name, suite     string
	excluded, smoke bool
}{
	{"Dynamic PV (default fs)] volumes should store data", "volumes", false, true},
	{"Dynamic PV (ext4)] volumes should store data", "volumes", false, false},
	{"Inline-volume (default fs)] volumes should store data", "volumes", true, false},
	{"Dynamic PV (ntfs)] [Feature:Windows] volumes should store data", "volumes", true, false},
	{"Dynamic PV (filesystem volmode)] [Slow] multiVolume [Slow] should access to two volumes", "multiVolume", false, false},
	{"Dynamic PV (default fs)] provisioning should provision storage with snapshot data source [Feature:VolumeSnapshotDataSource]", "provisioning", false, true},
	{"Dynamic PV (default fs)] provisioning should provision storage with snapshot data source (ROX mode) [Feature:VolumeSnapshotDataSource]", "provisioning", false, false},
	{"Dynamic Snapshot (delete policy)] snapshottable [Feature:VolumeSnapshotDataSource] volume snapshot controller  should check snapshot fields, " +
		"check restore correctly works after modifying source data, check deletion (persistent)", "snapshottable", false, true},
	{"Dynamic Snapshot (delete policy)] snapshottable-stress [Feature:VolumeSnapshotDataSource] should support snapshotting of many volumes repeatedly", "snapshottable-stress", false, false},
	{"Dynamic PV (default fs)] disruptive [Disruptive] [LinuxOnly] Should test that pv written before kubelet restart is readable after restart", "disruptive", true, false},
}

// TestUpstream_selection: the focus and skip expressions select the intended
// Kubernetes tests.
func TestUpstream_selection(t *testing.T) {
	excluded, err := exclusions()
	if err != nil {
		t.Fatal(err)
	}
	focus, skip := Options{Focus: Smoke}.patterns(excluded)
	smoke, skipped := regexp.MustCompile(focus), regexp.MustCompile(skip)
	for _, s := range specs {
		name := prefix + s.name
		if got := suite(name); got != s.suite {
			t.Errorf("%s is in the suite %q, want %q", s.name, got, s.suite)
		}
		if got := skipped.MatchString(name); got != s.excluded {
			t.Errorf("%s excluded: %t", s.name, got)
		}
		if got := smoke.MatchString(name); got != s.smoke {
			t.Errorf("%s is selected for the smoke test: %t", s.name, got)
		}
	}
	if _, skip := (Options{Skip: "other"}).patterns(excluded); !regexp.MustCompile(skip).MatchString("some other spec") {
		t.Error("the skip of the options has no effect")
	}
}

// TestUpstream_readReport: ginkgo's report is read: a test that was not selected does
// not count unless it is excluded, and a skipped test tells its reason.
func TestUpstream_readReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	text := `<testsuites><testsuite name="Kubernetes e2e suite">
		<testcase name="` + prefix + `Dynamic PV (default fs)] volumes one" time="1.5"></testcase>
		<testcase name="` + prefix + `Dynamic PV (default fs)] volumes two" time="1"><failure message="broken"></failure></testcase>
		<testcase name="` + prefix + `Dynamic PV (default fs)] volumeLimits three"><skipped message="skipped - not supported"></skipped></testcase>
		<testcase name="` + prefix + `Dynamic PV (default fs)] volumes four"><skipped message="skipped"></skipped></testcase>
		<testcase name="` + prefix + `Inline-volume (default fs)] volumes five"><skipped message="skipped"></skipped></testcase>
		<testcase name="[It] [sig-apps] something else"></testcase>
	</testsuite></testsuites>`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	excluded, err := exclusions()
	if err != nil {
		t.Fatal(err)
	}
	r := report.New(io.Discard)
	if err := read(r, file, regexp.MustCompile(external), excluded); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := r.Table(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"upstream volumes       1       1       1", "upstream volumeLimits  0       0       1", "volumes two"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	if strings.Contains(table.String(), "four") || strings.Contains(table.String(), "else") {
		t.Errorf("too much in\n%s", table.String())
	}
}
