// Package upstream runs Kubernetes' own tests of storage drivers
// (test/e2e/storage/testsuites there), unchanged, against the driver.
package upstream

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
)

//go:embed testdriver.yaml
var testDriver []byte

//go:embed excluded.yaml
var excludedList []byte

// external begins the names of the specs that a testdriver file makes.
const external = "External Storage"

// Smoke selects five specs, one for each main feature.
const Smoke = `Dynamic PV \(default fs\)\] volumes should store data|` +
	`Dynamic PV \(block volmode\)\] volumes should store data|` +
	`Dynamic Snapshot \(delete policy\)\] snapshottable .*check restore correctly works after modifying source data|` +
	`Dynamic PV \(default fs\)\] provisioning should provision storage with snapshot data source \[|` +
	`Dynamic PV \(default fs\)\(allowExpansion\)\] volume-expand should resize volume when PVC is edited while pod is using it`

// Options select specs.
type Options struct {
	Focus string // regular expression on the part of the name after the driver's; "" selects all
	Skip  string // regular expression of specs to skip, in addition to the excluded ones
	Procs int    // how many specs run at the same time
	Out   string // directory for logs and results
}

type exclusion struct {
	Specs  string `json:"specs"`
	Reason string `json:"reason"`

	match *regexp.Regexp
}

func exclusions() ([]exclusion, error) {
	var list []exclusion
	if err := yaml.UnmarshalStrict(excludedList, &list); err != nil {
		return nil, fmt.Errorf("excluded.yaml: %w", err)
	}
	for i, e := range list {
		var err error
		if list[i].match, err = regexp.Compile(e.Specs); err != nil {
			return nil, fmt.Errorf("excluded.yaml: %w", err)
		}
		if e.Reason == "" {
			return nil, fmt.Errorf("excluded.yaml: no reason for %s", e.Specs)
		}
	}
	return list, nil
}

// Run runs the selected specs and adds them to the report.
func Run(ctx context.Context, c *cluster.Client, o Options, r *report.Report) error {
	excluded, err := exclusions()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	driver := filepath.Join(o.Out, "testdriver.yaml")
	if err := os.WriteFile(driver, testDriver, 0o644); err != nil {
		return err
	}
	results := filepath.Join(o.Out, "upstream.xml")
	if err := os.RemoveAll(results); err != nil {
		return err
	}
	logFile := filepath.Join(o.Out, "upstream.log")
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	focus, skip := o.patterns(excluded)
	cmd := exec.CommandContext(ctx, filepath.Join(c.Programs, "ginkgo"),
		"--procs="+strconv.Itoa(o.Procs), "--timeout=24h", "--no-color", "-v", "--output-interceptor-mode=none",
		"--focus="+focus, "--skip="+skip, "--output-dir="+o.Out, "--junit-report="+filepath.Base(results),
		filepath.Join(c.Programs, "e2e.test"), "--",
		"-kubeconfig="+c.Kubeconfig(), "-kubectl-path="+filepath.Join(c.Programs, "kubectl"), "-provider=skeleton",
		"-storage.testdriver="+driver, "-num-nodes="+strconv.Itoa(c.Nodes), "-minStartupPods=0", "-dump-logs-on-failure=false")
	cmd.Stdout, cmd.Stderr = log, log
	// On an interrupt, ginkgo ends the running tests in order, and they clean
	// up.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Minute
	ran := cmd.Run()
	var exit *exec.ExitError
	if ran != nil && !errors.As(ran, &exit) {
		return ran
	}
	if err := read(r, results, regexp.MustCompile(focus), excluded); err != nil {
		return fmt.Errorf("%w; ginkgo ended with %v; its log is %s", err, ran, logFile) //nolint:errorlint // ran may be nil
	}
	return nil
}

func (o Options) patterns(excluded []exclusion) (focus, skip string) {
	focus = external + ".*(" + o.Focus + ")"
	var all []string
	for _, e := range excluded {
		all = append(all, e.Specs)
	}
	if o.Skip != "" {
		all = append(all, o.Skip)
	}
	return focus, strings.Join(all, "|")
}

// notSelected is ginkgo's message for a spec that neither ran nor skipped
// itself.
const notSelected = "skipped"

// read adds the specs of a JUnit file to the report.
func read(r *report.Report, file string, focus *regexp.Regexp, excluded []exclusion) error {
	cases, err := report.ReadJUnit(file)
	if err != nil {
		return err
	}
	for _, c := range cases {
		if !focus.MatchString(c.Name) {
			continue
		}
		c.Suite = "upstream " + suite(c.Name)
		if c.Skipped == notSelected {
			reason := ""
			for _, e := range excluded {
				if e.match.MatchString(c.Name) {
					reason = "excluded: " + e.Reason
				}
			}
			if reason == "" {
				continue
			}
			c.Skipped = reason
		}
		r.Add(c)
	}
	return nil
}

var suiteName = regexp.MustCompile(`\[Testpattern: [^\]]*\] (?:\[[^\]]*\] )*([A-Za-z-]+)`)

// suite returns the name of the suite that a spec belongs to.
func suite(spec string) string {
	m := suiteName.FindStringSubmatch(spec)
	if m == nil {
		return "other"
	}
	return m[1]
}
