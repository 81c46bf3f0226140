// Package report collects the results of tests, and writes them as a table and
// as JUnit.
package report

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// Case is the result of one test.
type Case struct {
	Suite, Name string
	Took        time.Duration
	Err         error  // why it failed
	Skipped     string // why it was not run
}

// Report collects cases. Only one goroutine may use it.
type Report struct {
	cases []Case
	log   io.Writer
}

// New returns a Report that writes its progress to log.
func New(log io.Writer) *Report { return &Report{log: log} }

// Run runs a test and adds its result.
func (r *Report) Run(ctx context.Context, suite, name string, test func(context.Context) error) error {
	fmt.Fprintf(r.log, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), suite, name)
	start := time.Now()
	err := test(ctx)
	took := time.Since(start)
	r.Add(Case{Suite: suite, Name: name, Took: took, Err: err})
	if err == nil {
		fmt.Fprintf(r.log, "          took %.1f s\n", took.Seconds())
	}
	return err
}

// Add adds a case.
func (r *Report) Add(c Case) {
	r.cases = append(r.cases, c)
	if c.Err != nil {
		fmt.Fprintf(r.log, "%s  FAILED %s: %s: %v\n", time.Now().Format(time.TimeOnly), c.Suite, c.Name, c.Err)
	}
}

// Err returns an error with the number of failed tests, or if nothing was
// tested.
func (r *Report) Err() error {
	failed, ran := 0, 0
	for _, c := range r.cases {
		if c.Err != nil {
			failed++
		}
		if c.Skipped == "" {
			ran++
		}
	}
	switch {
	case ran == 0:
		return errors.New("nothing was tested")
	case failed > 0:
		return fmt.Errorf("%d of %d tests failed", failed, ran)
	}
	return nil
}

// Table writes a line for each suite, and one for each test that failed.
func (r *Report) Table(out io.Writer) error {
	type sum struct {
		passed, failed, skipped int
		took                    time.Duration
	}
	sums := map[string]*sum{}
	var order []string
	for _, c := range r.cases {
		s := sums[c.Suite]
		if s == nil {
			s = &sum{}
			sums[c.Suite] = s
			order = append(order, c.Suite)
		}
		s.took += c.Took
		switch {
		case c.Skipped != "":
			s.skipped++
		case c.Err != nil:
			s.failed++
		default:
			s.passed++
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "suite\tpassed\tfailed\tskipped\ttime")
	for _, name := range order {
		s := sums[name]
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%v\n", name, s.passed, s.failed, s.skipped, s.took.Round(time.Second))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range r.cases {
		if c.Err != nil {
			fmt.Fprintf(out, "FAILED %s: %s\n", c.Suite, c.Name)
		}
	}
	return nil
}

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Suite   string     `xml:"classname,attr"`
	Name    string     `xml:"name,attr"`
	Seconds float64    `xml:"time,attr"`
	Failure *junitText `xml:"failure"`
	Skipped *junitText `xml:"skipped"`
}

type junitText struct {
	Message string `xml:"message,attr"`
}

// JUnit writes the cases to a file.
func (r *Report) JUnit(file string) error {
	all := junitSuites{}
	index := map[string]int{}
	for _, c := range r.cases {
		i, ok := index[c.Suite]
		if !ok {
			i = len(all.Suites)
			index[c.Suite] = i
			all.Suites = append(all.Suites, junitSuite{Name: c.Suite})
		}
		s := &all.Suites[i]
		entry := junitCase{Suite: c.Suite, Name: c.Name, Seconds: c.Took.Seconds()}
		s.Tests++
		if c.Err != nil {
			s.Failures++
			entry.Failure = &junitText{c.Err.Error()}
		}
		if c.Skipped != "" {
			s.Skipped++
			entry.Skipped = &junitText{c.Skipped}
		}
		s.Cases = append(s.Cases, entry)
	}
	data, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append([]byte(xml.Header), data...), 0o644)
}

// ReadJUnit reads the cases of a file that another program has written.
func ReadJUnit(file string) ([]Case, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all junitSuites
	if err := xml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var cases []Case
	for _, s := range all.Suites {
		for _, c := range s.Cases {
			entry := Case{Suite: c.Suite, Name: c.Name, Took: time.Duration(c.Seconds * float64(time.Second))}
			if c.Failure != nil {
				entry.Err = errors.New(c.Failure.Message)
			}
			if c.Skipped != nil {
				entry.Skipped = c.Skipped.Message
				if entry.Skipped == "" {
					entry.Skipped = "skipped"
				}
			}
			cases = append(cases, entry)
		}
	}
	return cases, nil
}
