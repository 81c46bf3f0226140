package figures

import (
	"fmt"
	"strings"
)

// judge adds the targets to the figures that have one.
func (s *Set) judge() {
	for i := range s.Figures {
		f := &s.Figures[i]
		if f.Against == Thin {
			continue // the targets are for the comparison with lvm2's snapshots
		}
		switch {
		case strings.HasPrefix(f.Name, "write_cost/block=64KiB/"):
			f.aim("at most 2.1", f.Ours <= 2.1)
		case strings.HasPrefix(f.Name, "write_throughput/") && strings.HasSuffix(f.Name, "/snapshots=16"):
			if one := s.find(strings.TrimSuffix(f.Name, "6")); one != nil {
				f.aim(fmt.Sprintf("at least %.1f: 90 %% of that with one snapshot", 0.9*one.Ours), f.Ours >= 0.9*one.Ours)
			}
		case strings.HasPrefix(f.Name, "write_flat/") && f.Ratio != nil:
			f.aim("ratio 0.9", *f.Ratio >= 0.9)
		case f.Name == "create_volume/callers=64", f.Name == "delete_volume/callers=64":
			f.aim("at least 300/s", f.Ours >= 300)
		case strings.HasPrefix(f.Name, "create_volume/") && f.Ratio != nil:
			f.aim("100 times lvm2", *f.Ratio >= 100)
		case strings.HasPrefix(f.Name, "create_snapshot/") && f.Ratio != nil:
			f.aim("30 times lvm2", *f.Ratio >= 30)
		case strings.HasPrefix(f.Name, "freeze_window/writers=") && f.TheirsP99 != nil:
			f.aim(fmt.Sprintf("p99 at most %.1f: twice that of a bare freeze", 2**f.TheirsP99), *f.OursP99 <= 2**f.TheirsP99)
		case strings.HasPrefix(f.Name, "freeze_window/") && f.Against == Bare:
			f.aim(fmt.Sprintf("at most %.1f: 1.3 times a bare freeze", 1.3**f.Theirs), f.Ours <= 1.3**f.Theirs)
		case strings.HasPrefix(f.Name, "restore_create/"), strings.HasPrefix(f.Name, "clone_create/"):
			f.aim("at most 50 ms", f.Ours <= 50)
		case f.Name == "restore_first_byte/plain" && f.Ratio != nil:
			f.aim("at most 1.2 times by hand", *f.Ratio >= 1/1.2)
		case f.Name == "hydration_throughput" && f.Ratio != nil:
			f.aim("ratio 0.95", *f.Ratio >= 0.95)
		case f.Name == "foreground_p99/hydrating=source" && f.Ratio != nil:
			f.aim("at most 1.3 times idle", *f.Ratio >= 1/1.3)
		case f.Name == "foreground_p99/hydrating=fork" && f.Ratio != nil:
			f.aim("at most 2 times idle", *f.Ratio >= 1/2.0)
		case strings.HasPrefix(f.Name, "fio_overhead/") && f.High != nil:
			f.aim("ratio 0.97, its interval up to 0.99", *f.Ratio >= 0.97 && *f.High >= 0.99)
		}
	}
}

func (f *Figure) aim(target string, met bool) { f.Target, f.Met = target, &met }
