//go:build kernel && points

package points

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// selection is a part of POINTS.
type selection struct {
	name     string // the beginning of the operations' names
	from, to int    // the first and the last point; to is 0 if there is no last one
	machine  bool   // only with the death of the machine
}

var selected = regexp.MustCompile(`^([a-z-]+)(?::(\d+)(-(\d*))?(m)?)?$`)

func parseSelection(text string) (all []selection, err error) {
	for part := range strings.SplitSeq(text, ",") {
		m := selected.FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("invalid POINTS %q: must be like cut, cut-next:17, cut-next:17m or cut-next:17-40", part)
		}
		s := selection{name: m[1], from: 1, machine: m[5] != ""}
		if m[2] != "" {
			s.from, _ = strconv.Atoi(m[2])
			s.to = s.from
		}
		if m[3] != "" {
			s.to, _ = strconv.Atoi(m[4]) // 0 if there is no last point
		}
		if s.name == "all" {
			s.name = ""
		}
		all = append(all, s)
	}
	return all, nil
}

// TestPoints: the operations in POINTS, or a sample of all operations, are cut at
// their points, and the repair is right after each cut.
func TestPoints(t *testing.T) {
	c := newCampaign(t)
	ops := operations()
	text := os.Getenv("POINTS")
	if text == "" {
		c.sample(ops)
		return
	}
	chosen, err := parseSelection(text)
	if err != nil {
		t.Fatal(err)
	}
	done := 0
	for _, s := range chosen {
		for _, op := range ops {
			if op.name == s.name || !exact(ops, s.name) && strings.HasPrefix(op.name, s.name) {
				c.sweep(op, s, nil)
				done++
			}
		}
	}
	if done == 0 {
		t.Fatalf("POINTS=%s selects no operation", text)
	}
	c.sum(done)
}

// exact reports whether an operation has exactly this name. Otherwise the name
// is the beginning of some.
func exact(ops []*operation, name string) bool {
	return slices.ContainsFunc(ops, func(op *operation) bool { return op.name == name })
}

// TestList: prints the list of the operations for make points.
func TestList(t *testing.T) {
	if os.Getenv("POINTS") == "list" {
		for _, op := range operations() {
			fmt.Println("operation", op.name)
		}
	}
}

func (c *campaign) sum(operations int) {
	fmt.Printf("%d points of %d operations cut, %d findings\n", c.cuts, operations, c.findings)
	if c.findings > 0 {
		c.t.Fail()
	}
}

const (
	sampleFor    = 75 * time.Second
	sampleOfEach = 5
	triesToMeet  = 5 // how often an operation is run until it has points
	fewTried     = 8 // with fewer points than this, missing most of them is no finding
)

// sample cuts a few points of as many operations as time allows, other ones in
// each run.
func (c *campaign) sample(ops []*operation) {
	limit := sampleFor
	if text := os.Getenv("POINTS_FOR"); text != "" {
		var err error
		if limit, err = time.ParseDuration(text); err != nil {
			c.t.Fatal(err)
		}
	}
	began, done := time.Now(), 0
	rand.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	for _, op := range ops {
		if time.Since(began) > limit {
			break
		}
		if least[op.name] == 0 {
			continue
		}
		c.sweep(op, selection{from: 1}, func(points int) []int {
			some := rand.Perm(points)[:min(points, sampleOfEach)]
			slices.Sort(some)
			return some
		})
		done++
	}
	c.sum(done)
}

// sweep cuts an operation at all selected points, or at the points that choose
// returns, counted from 0.
func (c *campaign) sweep(op *operation, s selection, choose func(points int) []int) {
	began, cuts, findings := time.Now(), c.cuts, c.findings
	points, tried, err := c.sweepThrough(op, s, choose)
	if err != nil {
		c.finding(op, 0, "", false, err)
	}
	if err == nil && points < least[op.name] {
		c.finding(op, 0, "", false, fmt.Errorf("the operation has %d points, want at least %d", points, least[op.name]))
	}
	if cut := c.cuts - cuts; err == nil && tried >= fewTried && 2*cut < tried {
		c.finding(op, 0, "", false, fmt.Errorf("only %d of %d points were cut: the others were not reached", cut, tried))
	}
	fmt.Printf("operation %s: %d points, %d cut, %d findings, %v\n", op.name, points, c.cuts-cuts, c.findings-findings, time.Since(began).Round(time.Second))
}

func (c *campaign) sweepThrough(op *operation, s selection, choose func(points int) []int) (points, tried int, err error) {
	base := op
	if op.first != nil {
		base = op.first
	}
	t, err := c.build(base)
	if err != nil {
		return 0, 0, fmt.Errorf("building the pool: %w", c.over(nil, err))
	}
	var places []place
	// Background work has points in one run and none in the next.
	for try := 0; len(places) == 0; try++ {
		if try == triesToMeet {
			return 0, 0, errors.New("the operation has no points")
		}
		if places, err = c.places(op, t); err != nil {
			return 0, 0, err
		}
	}
	all := make([]int, len(places))
	for i := range all {
		all[i] = i
	}
	if choose != nil {
		all = choose(len(places))
	}
	if every, _ := strconv.Atoi(os.Getenv("POINTS_EVERY")); every > 1 && s.to == 0 {
		first := rand.IntN(every)
		all = slices.DeleteFunc(all, func(i int) bool { return i%every != first })
	}
	for k, i := range all {
		if i+1 < s.from || s.to != 0 && i+1 > s.to {
			continue
		}
		p := places[i]
		tried++
		for _, machine := range []bool{false, true} {
			if s.machine != machine && (s.machine || (k+rollingStart)%machineEvery != 0) {
				continue
			}
			cut, err := c.cut(p.op, t, p.n, machine)
			if cut && !machine || cut && s.machine {
				c.cuts++
			}
			if err != nil {
				c.finding(p.op, i+1, p.name, machine, err)
			}
			if errors.Is(err, errStuck) {
				fmt.Printf("stuck: go on with %s:%d-\n", op.name, i+2)
				os.Exit(3)
			}
		}
	}
	return len(places), tried, nil
}

// place is a point of an operation, or a point of a repair after one of its
// cuts.
type place struct {
	op   *operation
	n    int
	name string
}

// places returns all points of an operation, as they come in one run.
func (c *campaign) places(op *operation, t *template) (all []place, err error) {
	variants, err := c.variants(op, t)
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		passed, err := c.dry(v, t)
		if err != nil {
			return nil, fmt.Errorf("%s without a cut: %w", v.name, err)
		}
		for i, name := range passed {
			if timed {
				fmt.Printf("%s:%d is %s\n", op.name, len(all)+1, name)
			}
			all = append(all, place{v, i + 1, name})
		}
	}
	return all, nil
}

func (c *campaign) finding(op *operation, n int, where string, machine bool, err error) {
	c.findings++
	mark := ""
	if machine {
		mark = "m"
	}
	fmt.Printf("FINDING %s:%d%s (%s): %v\n", op.name, n, mark, where, err)
}
