package handle

import (
	"strings"
	"testing"
)

// TestParse_roundTrip: an id survives text, the longest id fits into a CSI
// message, and other strings are not ids.
func TestParse_roundTrip(t *testing.T) {
	longest := ID{Node: strings.Repeat("n", maxNode), Pool: strings.Repeat("p", maxPool), LV: strings.Repeat("l", 59)}
	for _, want := range []ID{
		{Node: "node-1.example.org", Pool: "fast", LV: "pvc-0a1b"},
		longest,
	} {
		got, ok := Parse(want.String())
		if !ok || got != want {
			t.Errorf("%s: parsed as %+v, %t", want, got, ok)
		}
	}
	if n := len(longest.String()); n != Max {
		t.Errorf("the longest id has %d bytes", n)
	}
	for _, s := range []string{
		"", "fake-vol-id", "v1", "v1:::", "v1:n:p:", "v1::p:l", "v1:n::l", "v2:n:p:l", "v1:n:p:l:x",
		"v1:n:p:../l", "v1:n:p:l/x", "v1:n:p q:l", "v1:n:p:l\x00", "v1:n:p:ü",
		"v1:" + strings.Repeat("n", maxNode+1) + ":p:l",
		"v1:n:" + strings.Repeat("p", maxPool+1) + ":l",
		"v1:n:p:" + strings.Repeat("l", Max),
	} {
		if got, ok := Parse(s); ok {
			t.Errorf("%q: parsed as %+v", s, got)
		}
	}
}

// FuzzParse: a string that parses is the text of its id and has no path
// separators.
func FuzzParse(f *testing.F) {
	f.Add("v1:node:pool:lv")
	f.Add("v1:n-1.example:p.q:pvc_1+2")
	f.Add("v1:::")
	f.Fuzz(func(t *testing.T, s string) {
		if i, ok := Parse(s); ok && (i.String() != s || len(s) > Max || strings.ContainsAny(s, "/ \x00")) {
			t.Errorf("%q: parsed as %+v", s, i)
		}
	})
}

// TestShortNode_longNames: short names stay, and long names become distinct
// valid names of 40 bytes.
func TestShortNode_longNames(t *testing.T) {
	long := strings.Repeat("a-very-long-name.", 10)
	for _, name := range []string{"n", "worker-17.example.org", strings.Repeat("x", 40)} {
		if got := ShortNode(name); got != name {
			t.Errorf("%q became %q", name, got)
		}
	}
	short := ShortNode(long)
	if len(short) != 40 || short[:31] != long[:31] || short[31] != '-' || !only(short[32:], "") {
		t.Errorf("%q became %q", long, short)
	}
	if ShortNode(long+"1") == ShortNode(long+"2") {
		t.Error("two long names have one short form")
	}
	if !only(short, ".-") {
		t.Errorf("%q would not be parsed", short)
	}
}

// TestCheckNode_names: names of nodes have 1 to 256 valid characters.
func TestCheckNode_names(t *testing.T) {
	for name, want := range map[string]bool{
		"n": true, "worker-17.example.org": true, strings.Repeat("x", 256): true,
		"": false, "a node": false, "a/b": false, "v1:n": false, strings.Repeat("x", 257): false,
	} {
		if err := CheckNode(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}
