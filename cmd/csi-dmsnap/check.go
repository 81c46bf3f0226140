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

// checkName is the command whose exit code tells findings from failures.
const checkName = "check"

// checkLimit is longer than lookLimit: check reads the stores too.
const checkLimit = 10 * time.Minute

// errFindings is the error of check when it found something.
var errFindings = errors.New("not all is as it must be")

// checked is what check found in a pool.
type checked struct {
	*pool.Verification
	// Absent: the pool is optional, and not on this node. Only the driver can have
	// findings: somebody asked it for something in the pool.
	Absent bool `json:"absent,omitempty"`
	// NoDriver says why what only the running driver knows was not looked at.
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
				failed = append(failed, fmt.Errorf("pool %s: mounted volumes that the driver was not asked about: %d: %w", r.Pool, n, err))
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

// unasked is how many mounted volumes the driver was not asked about: only it knows how
// their file systems are.
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

// askDriver adds what the running driver's health calls say: it has tried what the disks
// and the kernel do not tell, such as to copy a part of a volume that cannot be read.
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
		return fmt.Errorf("the driver does not tell the health of its pools: %w", err)
	}
	for _, r := range results {
		for _, s := range storage.GetBackendHealth() {
			if strings.Contains(s.GetMessage(), driverPool(r.Pool)) {
				r.told(r.VolumeGroup, pool.Condition{Reason: s.GetReason(), Message: s.GetMessage()})
			}
		}
		for _, lv := range slices.Sorted(maps.Keys(r.Volumes)) {
			q := &csi.NodeGetVolumeHealthRequest{VolumeId: handle.ID{Node: handle.ShortNode(info.GetNodeId()), Pool: r.Pool, LV: lv}.String()}
			if mounts := r.Volumes[lv]; len(mounts) > 0 {
				q.StagingTargetPath = mounts[0]
			}
			a, err := node.NodeGetVolumeHealth(ctx, q)
			if status.Code(err) == codes.NotFound { // deleted meanwhile
				continue
			}
			if err != nil {
				return fmt.Errorf("the driver does not tell the health of %s: %w", q.GetVolumeId(), err)
			}
			for _, s := range a.GetVolumeHealth().GetHealthStatuses() {
				r.told(r.VolumeGroup+"/"+lv, pool.Condition{Reason: s.GetReason(), Message: s.GetMessage()})
			}
		}
	}
	return nil
}

// driverPool begins what the driver says of a pool.
func driverPool(name string) string { return "pool " + name + ": " }

// told adds what the driver told, unless it was found already: of the same volume, or of
// what is the pool's where that is known more closely, as a lost snapshot is.
func (c *checked) told(where string, condition pool.Condition) {
	if !slices.ContainsFunc(c.Findings, func(f pool.Finding) bool {
		return f.Reason == condition.Reason && (f.Where == where || where == c.VolumeGroup || condition.Reason == pool.ReasonSnapshotLost)
	}) {
		c.Findings = append(c.Findings, condition.Finding(where))
	}
}

// exitCode is the program's exit code after a command ended with err.
func exitCode(cmd *cobra.Command, err error) int {
	const found, failed = 1, 2
	switch {
	case err == nil:
		return 0
	case cmd.Name() == checkName && !errors.Is(err, errFindings):
		return failed
	}
	return found
}
