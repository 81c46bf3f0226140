package main

import (
	"strings"
	"testing"
)

// TestRender_zero: a number that is set to 0 is rendered as 0: without it, the default
// would apply.
func TestRender_zero(t *testing.T) {
	values, err := parseValues(`
pools: [{name: a, layerReservePercent: 0, hydrationRate: "0"}]
controller: {replicas: 2, logLevel: 0, podDisruptionBudget: {maxUnavailable: 0}}
node: {logLevel: 0}
provisioner: {logLevel: 0}
snapshotter: {logLevel: 0}
resizer: {logLevel: 0}
`)
	if err != nil {
		t.Fatal(err)
	}
	files, err := render(values, snapshotAPI)
	if err != nil {
		t.Fatal(err)
	}
	text := documents(files)
	for want, times := range map[string]int{"layerReservePercent: 0\n": 1, "hydrationRate: \"0\"\n": 1, "maxUnavailable: 0\n": 1, "--v=0\n": 5} {
		if got := strings.Count(text, want); got != times {
			t.Errorf("%q is there %d times, want %d:\n%s", want, got, times, text)
		}
	}
	if values, err = parseValues("pools: [{name: a}]\ncontroller: {replicas: 0}"); err == nil {
		files, err = render(values, snapshotAPI)
	}
	if err != nil || !strings.Contains(documents(files), "replicas: 0\n") {
		t.Errorf("a controller of no replicas: %v", err)
	}
}
