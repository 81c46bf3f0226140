package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// cost runs a step, and notes how long it took and what it cost the controller.
func (s *setup) cost(ctx context.Context, c *controller, name string, f func(context.Context) (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	before, err := c.state()
	if err != nil {
		return err
	}
	begin := time.Now()
	n, err := f(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	took := time.Since(begin)
	after, err := c.state()
	if err != nil {
		return err
	}
	s.note(name+"/count", float64(n), "")
	s.note(name+"/all", took.Seconds(), "s")
	s.note(name+"/cpu", (after.CPU - before.CPU).Seconds(), "s")
	s.note(name+"/rss-peak", float64(after.Peak)/(1<<20), "MiB")
	return nil
}

// capacity asks for the room of every node and class, four at a time.
func (s *setup) capacity(ctx context.Context, c *controller) error {
	const askers = 4
	return s.cost(ctx, c, "capacity", func(ctx context.Context) (int, error) {
		return s.o.nodes * s.o.classes, together(askers, func(a int) error {
			for i := a; i < s.o.nodes*s.o.classes; i += askers {
				_, err := c.GetCapacity(ctx, &csi.GetCapacityRequest{
					Parameters:         map[string]string{"pool": "fast"},
					AccessibleTopology: &csi.Topology{Segments: map[string]string{handle.TopologyKey: nodeName(i % s.o.nodes)}},
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// lists reads all lists, in pages and in one piece.
func (s *setup) lists(ctx context.Context, c *controller) error {
	volumes := func(limit int32) func(context.Context) (int, error) {
		return func(ctx context.Context) (n int, err error) {
			for token := ""; ; {
				a, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: limit, StartingToken: token})
				n += len(a.GetEntries())
				if token = a.GetNextToken(); err != nil || token == "" {
					return n, err
				}
			}
		}
	}
	snapshots := func(ctx context.Context) (n int, err error) {
		for token := ""; ; {
			a, err := c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: 1000, StartingToken: token})
			n += len(a.GetEntries())
			if token = a.GetNextToken(); err != nil || token == "" {
				return n, err
			}
		}
	}
	return errors.Join(s.cost(ctx, c, "list-volumes/pages", volumes(1000)), s.cost(ctx, c, "list-snapshots/pages", snapshots),
		s.cost(ctx, c, "list-volumes/whole", volumes(0)))
}

// outageTime is longer than the longest pause between two attempts to connect.
const outageTime = 20 * time.Second

// outage cuts all connections and refuses new ones for a while. Then it measures
// the time until both controllers have what they had.
func (s *setup) outage(ctx context.Context, c *controller) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	if _, err := s.crowd.order("cut"); err != nil {
		return err
	}
	time.Sleep(outageTime)
	before, err := s.crowd.order("back")
	if err != nil {
		return err
	}
	took, err := until(ctx, "the leader follows all nodes after an outage", func() (bool, error) {
		f, err := s.crowd.order("counts")
		return f.Watch == int64(s.o.nodes), err
	})
	if err != nil {
		return err
	}
	s.note("outage/follow-all", took.Seconds(), "s")
	if err := s.create(ctx, c, "outage/immediate", 1, anywhere); err != nil {
		return err
	}
	after, err := s.crowd.order("counts")
	if err != nil {
		return err
	}
	s.note("outage/connections", float64(after.Dials-before.Dials), "")
	return s.use("outage", c)
}

// happenings makes every node report something at the same time, and measures the
// time until there is an Event for every node.
func (s *setup) happenings(ctx context.Context, leader *controller) error {
	return s.cost(ctx, leader, "events", func(ctx context.Context) (int, error) {
		had := s.api.count("POST", "events")
		if _, err := s.crowd.order("report"); err != nil {
			return 0, err
		}
		_, err := until(ctx, "an Event for every node", func() (bool, error) {
			return s.api.count("POST", "events") >= had+s.o.nodes, nil
		})
		return s.o.nodes, err
	})
}

// leaderChange kills the leader, as when its node loses power. It measures the time
// until the other controller follows all nodes.
func (s *setup) leaderChange(ctx context.Context, leader, other *controller) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	if err := leader.end(syscall.SIGKILL); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := until(ctx, "the leader's streams end", func() (bool, error) {
		f, err := s.crowd.order("counts")
		return f.Watch == 0, err
	}); err != nil {
		return err
	}
	if _, err := until(ctx, "the next leader follows the reports of all nodes", func() (bool, error) {
		f, err := s.crowd.order("counts")
		return f.Watch == int64(s.o.nodes), err
	}); err != nil {
		return err
	}
	s.note("leader-change/follow-all", time.Since(begin).Seconds(), "s")
	return s.use("leader-change", other)
}
