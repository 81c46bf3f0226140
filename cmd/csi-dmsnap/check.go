package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// checkCommandName names the command whose exit code tells findings from failures.
const checkCommandName = "check"

// checkLimit is longer than lookLimit, because check also reads the stores.
const checkLimit = 10 * time.Minute

// errFindings is the error of check if the pools have findings.
var errFindings = errors.New("problems were found")

// checked is the result of check for one pool.
type checked struct {
	*pool.Verification
	// Absent reports that the pool is optional and not on this node. Then only the
	// driver can have findings, because of a call that names the pool.
	Absent bool `json:"absent,omitempty"`
	// NoDriver says why the running driver was not asked; "" if it answered.
	NoDriver string `json:"noDriver,omitempty"`
}

func (o *operator) check(cmd *cobra.Command, _ []string) error {
	configs, err := o.pools(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), checkLimit)
	defer cancel()
	absent := map[string]bool{}
	results, failed, findings := []*checked{}, []error(nil), 0
	for _, c := range configs {
		v, err := pool.Verify(ctx, c, pool.Options{})
		if err != nil && pool.Absent(ctx, c, pool.Options{}) {
			v, err = &pool.Verification{Pool: c.Name, VolumeGroup: c.VolumeGroup, Findings: []pool.Finding{}, Unread: []pool.Unread{}}, nil
			absent[c.Name] = true
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		v.Findings = append(v.Findings, v.Told...)
		results = append(results, &checked{Verification: v, Absent: absent[c.Name]})
	}
	notRead := failed
	if err := o.askDriver(ctx, results); err != nil {
		for _, r := range results {
			r.NoDriver = err.Error()
			if n := r.unasked(); n > 0 {
				failed = append(failed, fmt.Errorf("pool %s: the driver was not asked about %d mounted volumes: %w", r.Pool, n, err))
			}
		}
	}
	for _, r := range results {
		findings += len(r.Findings)
	}
	var table strings.Builder
	printCheck(&table, results)
	if err := printAs(cmd.OutOrStdout(), o.output, table.String(), results); err != nil {
		notRead, failed = append(notRead, err), append(failed, err)
	}
	if len(notRead) == 0 && findings > 0 {
		return errFindings
	}
	return errors.Join(failed...)
}

// unasked returns the number of mounted volumes that the driver was not asked
// about. Only the driver knows the state of their file systems.
func (c *checked) unasked() (n int) {
	if c.NoDriver == "" {
		return 0
	}
	for _, mounts := range c.Volumes {
		if len(mounts) > 0 {
			n++
		}
	}
	return n
}

// askDriver adds the running driver's health to the findings. The driver knows
// what neither the disks nor the kernel show, such as a part of a volume that it
// failed to copy.
func (h *here) askDriver(ctx context.Context, results []*checked) error {
	conn, err := h.driver()
	if err != nil {
		return err
	}
	defer conn.Close()
	node := csi.NewNodeClient(conn)
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	info, err := node.NodeGetInfo(limited, &csi.NodeGetInfoRequest{})
	if err != nil {
		return fmt.Errorf("the driver does not answer at %s: %w", h.endpoint, err)
	}
	storage, err := node.NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
	if err != nil {
		return fmt.Errorf("ask the driver for the health of its pools: %w", err)
	}
	for _, r := range results {
		for _, s := range storage.GetBackendHealth() {
			if strings.Contains(s.GetMessage(), driverPool(r.Pool)) {
				r.add(r.VolumeGroup, pool.Condition{Reason: s.GetReason(), Message: s.GetMessage()})
			}
		}
		for _, lv := range slices.Sorted(maps.Keys(r.Volumes)) {
			q := &csi.NodeGetVolumeHealthRequest{VolumeId: handle.ID{Node: handle.ShortNode(info.GetNodeId()), Pool: r.Pool, LV: lv}.String()}
			if mounts := r.Volumes[lv]; len(mounts) > 0 {
				q.StagingTargetPath = mounts[0]
			}
			a, err := node.NodeGetVolumeHealth(ctx, q)
			if status.Code(err) == codes.NotFound { // deleted since Verify
				continue
			}
			if err != nil {
				return fmt.Errorf("ask the driver for the health of %s: %w", q.GetVolumeId(), err)
			}
			for _, s := range a.GetVolumeHealth().GetHealthStatuses() {
				r.add(r.VolumeGroup+"/"+lv, pool.Condition{Reason: s.GetReason(), Message: s.GetMessage()})
			}
		}
	}
	return nil
}

// driverPool returns the prefix of the driver's messages about a pool.
func driverPool(name string) string { return "pool " + name + ": " }

// add adds a condition that the driver reports, unless a finding has its reason
// already: at the same place, or at a more exact one, such as a volume where the
// driver names the pool, or the lost snapshot where the driver names its volume.
func (c *checked) add(where string, condition pool.Condition) {
	if !slices.ContainsFunc(c.Findings, func(f pool.Finding) bool {
		return f.Reason == condition.Reason && (f.Where == where || where == c.VolumeGroup || condition.Reason == pool.ReasonSnapshotLost)
	}) {
		c.Findings = append(c.Findings, condition.Finding(where))
	}
}

// exitCode returns the program's exit code after a command ended with err.
func exitCode(cmd *cobra.Command, err error) int {
	const failed, checkFailed = 1, 2 // check exits with 1 if it has findings
	switch {
	case err == nil:
		return 0
	case cmd.Name() == checkCommandName && !errors.Is(err, errFindings):
		return checkFailed
	}
	return failed
}
