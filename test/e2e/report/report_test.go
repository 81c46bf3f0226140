package report

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReport_cases: the report counts cases, failures and skips, and an empty report
// is an error.
func TestReport_cases(t *testing.T) {
	r := New(io.Discard)
	if r.Err() == nil {
		t.Error("Err returns nil although nothing was tested")
	}
	ctx := context.Background()
	if err := r.Run(ctx, "one", "good", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	r.Add(Case{Suite: "two", Name: "left out", Skipped: "for a reason"})
	bad := errors.New(`bad "thing" <here>`)
	if err := r.Run(ctx, "two", "bad", func(context.Context) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	if err := r.Err(); err == nil || err.Error() != "1 of 2 tests failed" {
		t.Errorf("got %v", err)
	}
	file := filepath.Join(t.TempDir(), "new", "junit.xml")
	if err := r.JUnit(file); err != nil {
		t.Fatal(err)
	}

	cases, err := ReadJUnit(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) != 3 || cases[1].Skipped != "for a reason" || cases[2].Suite != "two" || cases[2].Err.Error() != bad.Error() {
		t.Errorf("read back %+v", cases)
	}
	r.Add(Case{Suite: "two", Name: "slow", Took: 90 * time.Second})
	var table strings.Builder
	if err := r.Table(&table); err != nil {
		t.Fatal(err)
	}
	want := "suite  passed  failed  skipped  time\none    1       0       0        0s\ntwo    1       1       1        1m30s\nFAILED two: bad\n"
	if table.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", table.String(), want)
	}
}
