// Package story does what a user does, only with kubectl, and checks the
// outcome.
package story

import (
	"context"
	"errors"
	"regexp"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/cluster"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/report"
)

// teller runs the stories.
type teller struct {
	*kube.Namespace
	c *cluster.Client
}

// step is a part of a chapter. Each step needs the earlier ones.
type step struct {
	name string
	do   func(context.Context) error
}

// Run runs the stories whose names match and adds their steps to the report. It
// reads the README in the repository at root.
func Run(ctx context.Context, c *cluster.Client, root string, match *regexp.Regexp, r *report.Report) error {
	t := &teller{&kube.Namespace{Kubectl: c.Kubectl(), Name: "story"}, c}
	if err := t.Create(ctx); err != nil {
		return err
	}
	quickStart, err := t.quickStart(root)
	if err != nil {
		return err
	}
	chapters := []struct {
		name  string
		steps []step
	}{
		{"life of a volume", t.life()},
		{"restore whose pod lands elsewhere first", t.elsewhere()},
		{"restored and new volume in one pod", t.mixed()},
		{"snapshot used without a copy", t.uncopied()},
		{"volume made by hand", t.static()},
		{"quick start of the README", quickStart},
		{"nothing is left", t.nothingLeft()},
	}
	for _, chapter := range chapters {
		if !match.MatchString(chapter.name) {
			continue
		}
		if tell(ctx, r, "story: "+chapter.name, chapter.steps) {
			continue
		}
		// The next chapter must begin with a clean cluster, even after a
		// failure.
		if err := t.reset(ctx); err != nil {
			return err
		}
	}
	return nil
}

// reset undoes what a chapter may have left.
func (t *teller) reset(ctx context.Context) error {
	args := []string{"uncordon"}
	for i := range t.c.Nodes {
		args = append(args, cluster.NodeName(i+1))
	}
	_, err := t.Kubectl.Run(ctx, args...)
	return errors.Join(err, t.Clear(ctx))
}

// tell runs the steps up to the first one that fails. It reports whether all
// succeeded.
func tell(ctx context.Context, r *report.Report, suite string, steps []step) bool {
	for i, s := range steps {
		err := r.Run(ctx, suite, s.name, s.do)
		if err == nil {
			continue
		}
		for _, s := range steps[i+1:] {
			r.Add(report.Case{Suite: suite, Name: s.name, Skipped: "an earlier step failed"})
		}
		return false
	}
	return true
}

func second(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Second):
		return nil
	}
}
