package main

import (
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// The formats for programs have the same keys and values, and lengths are whole numbers.
func TestPrintAs_formats(t *testing.T) {
	volumes := []pool.VolumeState{
		{Pool: "fast", Name: "a", LV: "base", Size: 20 * size.GiB, State: "ready"},
		{Pool: "fast", Name: "b", LV: "copy", Size: 3 << 50, Source: &pool.Source{Kind: pool.FromSnapshot, LV: "snap1"}},
	}
	for output, want := range map[string]string{
		"table":                                           "TABLE",
		"jsonpath={[*].lv}":                               "base copy",
		"jsonpath={[0].size} {[1].size}":                  "21474836480 3377699720527872",
		"jsonpath={[1].source.lv}":                        "snap1",
		"jsonpath={[*].noSuchKey}":                        "",
		"jsonpath={[?(@.name==\"b\")].lv}":                "copy",
		`jsonpath={range [*]}{.name}={.state}{"\n"}{end}`: "a=ready\nb=\n",
	} {
		var b strings.Builder
		if err := printAs(&b, output, "TABLE", volumes); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v, want %q", output, b.String(), err, want)
		}
	}
	for output, want := range map[string][]string{
		"json": {"[\n  {\n    \"pool\": \"fast\",\n    \"name\": \"a\",", `"size": 21474836480`},
		"yaml": {"- ", "  lv: base\n", "  size: 21474836480\n", "  size: 3377699720527872\n"},
	} {
		var b strings.Builder
		if err := printAs(&b, output, "TABLE", volumes); err != nil {
			t.Error(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s: %q is not in\n%s", output, w, b.String())
			}
		}
	}
	var b strings.Builder
	if err := printAs(&b, "yaml", "", []pool.VolumeState{}); err != nil || b.String() != "[]\n" {
		t.Errorf("an empty list: %q, %v", b.String(), err)
	}
}

// An output that no command knows is refused before anything is done.
func TestCheckOutput_refuses(t *testing.T) {
	for _, output := range []string{"", "xml", "JSON", "jsonpath", "jsonpath=", "jsonpath={", "jsonpath={[x]}", "json,yaml"} {
		if err := checkOutput(output); err == nil || !strings.HasPrefix(err.Error(), "invalid output ") {
			t.Errorf("%q: %v", output, err)
		}
	}
}
