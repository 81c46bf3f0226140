package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// stepLimit is how long a step may take.
const stepLimit = 5 * time.Minute

// measure goes through all steps. They build on each other.
func (s *setup) measure(ctx context.Context) error {
	leader, err := s.enrolment(ctx)
	if err != nil {
		return err
	}
	second, err := s.start(ctx)
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context, *controller) error{s.claimsAlone, s.claimsTogether, s.bound, s.capacity, s.lists, s.outage} {
		if err := step(ctx, second); err != nil {
			return err
		}
	}
	if err := s.happenings(ctx, leader); err != nil {
		return err
	}
	if err := s.leaderChange(ctx, leader, second); err != nil {
		return err
	}
	return second.end(syscall.SIGTERM)
}

// use notes what a controller uses.
func (s *setup) use(name string, c *controller) error {
	st, err := c.state()
	s.note(name+"/rss", float64(st.RSS)/(1<<20), "MiB")
	s.note(name+"/rss-peak", float64(st.Peak)/(1<<20), "MiB")
	s.note(name+"/goroutines", float64(st.Goroutines), "")
	s.note(name+"/cpu", st.CPU.Seconds(), "s")
	return err
}

// enrolment starts the first controller of a cluster whose nodes have no
// certificates. Kubernetes considers a node's pod ready once it has its
// certificate.
func (s *setup) enrolment(ctx context.Context) (*controller, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	c, err := startController(s.dir, "leader", s.kubeconfig, s.o, s.o.port+2)
	if err != nil {
		return nil, err
	}
	took, err := until(ctx, "all nodes are enrolled", func() (bool, error) {
		f, err := s.crowd.order("counts")
		return f.Enrolled == s.o.nodes, err
	})
	if err != nil {
		return nil, err
	}
	s.note("enrolment/all", took.Seconds(), "s")
	for i := range s.o.nodes {
		s.api.put("pods", pod(i, true))
	}
	took, err = until(ctx, "the leader follows the reports of all nodes", func() (bool, error) {
		f, err := s.crowd.order("counts")
		return f.Watch == int64(s.o.nodes), err
	})
	if err != nil {
		return nil, err
	}
	s.note("reports/follow-all", took.Seconds(), "s")
	return c, s.use("leader", c)
}

// start starts another controller of the running cluster. It calls what the
// sidecars call when they start.
func (s *setup) start(ctx context.Context) (*controller, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	begin := time.Now()
	c, err := startController(s.dir, "second", s.kubeconfig, s.o, s.o.port+3)
	if err != nil {
		return nil, err
	}
	if _, err := until(ctx, "the second controller is ready", func() (bool, error) {
		if !c.ready() {
			return false, nil
		}
		a, err := c.identity.Probe(ctx, &csi.ProbeRequest{})
		return a.GetReady().GetValue(), err
	}); err != nil {
		return nil, err
	}
	s.note("start/ready", time.Since(begin).Seconds(), "s")
	if err := s.use("start", c); err != nil {
		return nil, err
	}
	before, err := s.crowd.order("counts")
	if err != nil {
		return nil, err
	}
	begin = time.Now()
	const sidecars = 3
	err = together(sidecars, func(int) error {
		if _, err := c.identity.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{}); err != nil {
			return err
		}
		_, err := c.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	s.note("start/capabilities", time.Since(begin).Seconds(), "s")
	after, err := s.crowd.order("counts")
	if err != nil {
		return nil, err
	}
	s.note("start/calls", total(after.Calls), "")
	s.note("start/connections", float64(after.Dials-before.Dials), "")
	s.note("start/bytes-per-connection", float64(after.Bytes-before.Bytes)/max(float64(after.Dials-before.Dials), 1), "B")
	return c, s.use("connected", c)
}

// together runs f so many times at the same time, and returns the first error.
func together(n int, f func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func total(calls map[string]int64) (sum float64) {
	for _, n := range calls {
		sum += float64(n)
	}
	return sum
}

// request returns a CreateVolume request for a new claim. The node is the one that
// the scheduler chose; -1 if the claim binds immediately.
func (s *setup) request(i, node int) *csi.CreateVolumeRequest {
	q := &csi.CreateVolumeRequest{
		Name: "pvc-" + claimUID(i), CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30},
		Parameters: map[string]string{"pool": "fast", callmeta.ParameterClaimNamespace: "apps", callmeta.ParameterClaimName: fmt.Sprintf("claim-%06d", i)},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}},
	}
	if node >= 0 {
		there := []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: nodeName(node)}}}
		q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: there, Preferred: there}
	}
	return q
}

// create makes volumes for that many new claims at the same time. A claim that
// fails is tried again as csi-provisioner does, after a second and then after twice
// as long each time. create notes what that cost.
func (s *setup) create(ctx context.Context, c *controller, name string, claims int, node func(int) int) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	first := s.claims
	s.claims += claims
	for i := range claims {
		addClaim(s.api, first+i)
	}
	if _, err := s.crowd.order("counts"); err != nil {
		return err
	}
	before, err := c.state()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var times []time.Duration
	failures := 0
	begin := time.Now()
	err = together(claims, func(i int) error {
		own := time.Now()
		for pause := time.Second; ; pause *= 2 {
			attempt, stop := context.WithTimeout(ctx, sidecarTimeout)
			_, err := c.CreateVolume(attempt, s.request(first+i, node(i)))
			stop()
			mu.Lock()
			if err == nil {
				times = append(times, time.Since(own))
			} else {
				failures++
			}
			mu.Unlock()
			if err == nil || ctx.Err() != nil {
				return err
			}
			time.Sleep(pause)
		}
	})
	took := time.Since(begin)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	after, err := c.state()
	if err != nil {
		return err
	}
	f, err := s.crowd.order("counts")
	if err != nil {
		return err
	}
	slices.Sort(times)
	s.note(name+"/all", took.Seconds(), "s")
	s.note(name+"/median", times[len(times)/2].Seconds()*1000, "ms")
	s.note(name+"/worst", times[len(times)-1].Seconds()*1000, "ms")
	s.note(name+"/failures", float64(failures), "")
	s.note(name+"/calls-per-claim", total(f.Calls)/float64(claims), "")
	s.note(name+"/calls-at-once", float64(f.Most), "")
	s.note(name+"/cpu-per-claim", (after.CPU-before.CPU).Seconds()*1000/float64(claims), "ms")
	return nil
}

// sidecarTimeout is the sidecars' --timeout in the chart.
const sidecarTimeout = time.Minute

func anywhere(int) int { return -1 }

// claimsAlone makes immediate claims one after the other.
func (s *setup) claimsAlone(ctx context.Context, c *controller) error {
	for _, name := range []string{"immediate/first", "immediate/second", "immediate/third"} {
		if err := s.create(ctx, c, name, 1, anywhere); err != nil {
			return err
		}
	}
	return nil
}

// claimsTogether makes many immediate claims at the same time.
func (s *setup) claimsTogether(ctx context.Context, c *controller) error {
	if err := s.create(ctx, c, "immediate/together", s.o.burst, anywhere); err != nil {
		return err
	}
	return s.use("claims", c)
}

// bound makes claims whose node the scheduler chose.
func (s *setup) bound(ctx context.Context, c *controller) error {
	return s.create(ctx, c, "bound/together", s.o.burst, func(i int) int { return i * 7 % s.o.nodes })
}
