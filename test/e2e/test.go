package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/install"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/lifecycle"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/sanity"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/story"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/upstream"
)

func installCommand() *cobra.Command {
	var dir string
	var set []string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install or upgrade the driver in a running cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.Connect(dir)
			if err != nil {
				return err
			}
			root, err := repository()
			if err != nil {
				return err
			}
			return install.Install(cmd.Context(), c, root, set...)
		},
	}
	clusterFlag(cmd, &dir)
	cmd.Flags().StringArrayVar(&set, "set", nil, "value for the chart, in the form of helm's --set")
	return cmd
}

// tests has the options of testCommand.
type tests struct {
	cluster  cluster.Options
	upstream upstream.Options
	chapters string
	sanity   int
	out      string
	keep     bool
	running  bool
}

// parts are the groups of tests, in the order in which they run.
var parts = []string{"story", "upstream", "sanity", "lifecycle"}

const smoke = "smoke"

func testCommand() *cobra.Command {
	var t tests
	cmd := &cobra.Command{
		Use:   "test [" + strings.Join(parts, "|") + "|" + smoke + "]...",
		Short: "Start a cluster, install the driver and test it",
		Long: `Start a cluster, install the driver, test it and stop the cluster.

Without arguments all tests run. smoke selects the story and five of Kubernetes' own tests.`,
		ValidArgs: append([]string{smoke}, parts...),
		Args:      cobra.OnlyValidArgs,
		RunE:      func(cmd *cobra.Command, args []string) error { return t.run(cmd.Context(), args) },
	}
	upFlags(cmd, &t.cluster)
	f := cmd.Flags()
	f.StringVar(&t.upstream.Focus, "focus", "", "regular expression of the upstream specs to run")
	f.StringVar(&t.upstream.Skip, "skip", "", "regular expression of upstream specs to skip")
	f.IntVar(&t.upstream.Procs, "procs", 2, "number of upstream specs to run at a time")
	f.StringVar(&t.chapters, "chapters", "", "regular expression of the stories and lifecycle tests to run")
	f.IntVar(&t.sanity, "times", 10, "how often to run csi-sanity")
	f.StringVar(&t.out, "out", "out/e2e", "directory for the results")
	f.BoolVar(&t.keep, "keep", false, "leave the cluster running")
	f.BoolVar(&t.running, "running", false, "test the driver that runs in the cluster, without installing it; implies --keep")
	return cmd
}

func (t *tests) run(ctx context.Context, selected []string) (err error) {
	chapters, err := regexp.Compile(t.chapters)
	if err != nil {
		return err
	}
	if len(selected) == 0 {
		selected = parts
	}
	if slices.Contains(selected, smoke) {
		selected = append(selected, "story", "upstream")
		t.upstream.Focus = upstream.Smoke
	}
	if t.out, err = filepath.Abs(t.out); err != nil {
		return err
	}
	t.upstream.Out = filepath.Join(t.out, "upstream")
	t.cluster.Tests = slices.Contains(selected, "upstream")
	c, err := t.begin(ctx)
	if err != nil {
		return err
	}
	if !t.keep && !t.running {
		defer func() {
			err = errors.Join(err, cluster.Down(context.WithoutCancel(ctx), c.Dir))
		}()
	}
	r := report.New(os.Stderr)
	for _, part := range parts {
		if !slices.Contains(selected, part) || ctx.Err() != nil {
			continue
		}
		var failed error
		switch part {
		case "story":
			failed = story.Run(ctx, c, t.cluster.Root, chapters, r)
		case "upstream":
			failed = upstream.Run(ctx, c, t.upstream, r)
		case "sanity":
			failed = sanity.Run(ctx, c, t.cluster.Root, filepath.Join(t.out, "sanity"), t.sanity, r)
		case "lifecycle":
			failed = lifecycle.Run(ctx, c, t.cluster.Root, chapters, r)
		}
		if failed != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", part, failed)
			err = errors.Join(err, fmt.Errorf("the part %s did not complete", part))
		}
	}
	return errors.Join(err, ctx.Err(), r.JUnit(filepath.Join(t.out, "junit.xml")), r.Table(os.Stdout), r.Err())
}

// begin starts a cluster and installs the driver, or connects to the running
// cluster.
func (t *tests) begin(ctx context.Context) (*cluster.Client, error) {
	var err error
	if t.cluster.Root, err = repository(); err != nil {
		return nil, err
	}
	if t.running {
		return cluster.Connect(t.cluster.Dir)
	}
	c, err := up(ctx, &t.cluster)
	if err != nil {
		return nil, err
	}
	if err := install.Install(ctx, c, t.cluster.Root); err != nil {
		if !t.keep {
			err = errors.Join(err, cluster.Down(context.WithoutCancel(ctx), c.Dir))
		}
		return nil, err
	}
	return c, nil
}
