//go:build !kernel

package lvm2

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

// strip removes the source texts, in which two equal nodes may differ.
func strip(nodes []node) []node {
	for i := range nodes {
		nodes[i].source = ""
		strip(nodes[i].children)
	}
	return nodes
}

// TestParseText_grammar: keys, values, lists and sections parse as in lvm2.
func TestParseText_grammar(t *testing.T) {
	text := `# comment
a = 1 b="x\"y\\z\n" 'c d' = 'raw\"' # after a value
list = [1, -2 , "three",four , 5.5] empty=[]
s { t { u = -07 } }
# Digits are a number only after = [ or a comma.
words = [ 1 2 ] f = +.5
` + "nl = \"two\nlines\"\x00 never { read"
	got, err := parseText(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []node{
		{key: "a", values: []value{{intValue, "1"}}},
		{key: "b", values: []value{{stringValue, `x"y\z\n`}}},
		{key: "c d", values: []value{{stringValue, `raw\"`}}},
		{key: "list", array: true, values: []value{{intValue, "1"}, {intValue, "-2"}, {stringValue, "three"}, {stringValue, "four"}, {floatValue, "5.5"}}},
		{key: "empty", array: true},
		{key: "s", section: true, children: []node{{key: "t", section: true, children: []node{{key: "u", values: []value{{intValue, "-07"}}}}}}},
		{key: "words", array: true, values: []value{{intValue, "1"}, {stringValue, "2"}}},
		{key: "f", values: []value{{floatValue, "+.5"}}},
		{key: "nl", values: []value{{stringValue, "two\nlines"}}},
	}
	if !reflect.DeepEqual(strip(got), want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// TestParseText_errors: malformed texts are damaged.
func TestParseText_errors(t *testing.T) {
	for _, text := range []string{
		"a", "a =", "a = [1 2]", "a = =", "a {", "a { b = 1", "a = [1", `a = "x`, "a = 'x", "= 1", "{ }", "} a = 1", "a = { }", "a/b = 1", `"" = 1`, "a = [1,,2]", "a = [[1]]",
		strings.Repeat("a {", 40) + strings.Repeat("}", 40),
	} {
		if nodes, err := parseText(text); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: got %v, error %v", text, nodes, err)
		}
	}
}

// FuzzParseText: the source text of each node parses to the same node, wherever
// it is written again.
func FuzzParseText(f *testing.F) {
	f.Add("a = 1\nb { c = [\"x\", 2] d = 'e' }")
	f.Add("x=+1.5 y=[a b,3]# c\n z{}")
	f.Fuzz(func(t *testing.T, text string) {
		nodes, err := parseText(text)
		if err != nil {
			return
		}
		var again strings.Builder
		for _, n := range nodes {
			again.WriteString(n.source + "\n")
			alone, err := parseText(n.source)
			if err != nil || len(alone) != 1 || alone[0].source != n.source {
				t.Fatalf("%q of %q: %+v, %v", n.source, text, alone, err)
			}
		}
		second, err := parseText(again.String())
		if err != nil {
			t.Fatalf("%q from %q: %v", again.String(), text, err)
		}
		if !reflect.DeepEqual(strip(nodes), strip(second)) {
			t.Fatalf("%+v became %+v", nodes, second)
		}
		for _, n := range nodes {
			for _, v := range n.values {
				if q, err := parseText("k = " + quote(v.text)); err != nil || q[0].values[0].text != v.text {
					t.Fatalf("quote(%q) reads as %+v, %v", v.text, q, err)
				}
			}
		}
	})
}
