package main

import (
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // in the output, or in the error
		ok   bool
	}{
		{[]string{"version"}, buildVersion(), true},
		{[]string{"node", "--help"}, "--kubelet-dir", true},
		{[]string{"node"}, "node-name", false},
		{[]string{"node", "--node-name", "n1", "--config", "/does/not/exist"}, "/does/not/exist", false},
		{[]string{"node", "extra"}, "extra", false},
		{[]string{"nod"}, "nod", false},
	} {
		cmd := command()
		var out strings.Builder
		cmd.SetOut(&out)
		cmd.SetArgs(c.args)
		err := cmd.Execute()
		text := out.String()
		if err != nil {
			text += err.Error()
		}
		if (err == nil) != c.ok || !strings.Contains(text, c.want) {
			t.Errorf("%v: %q, %v; want %q", c.args, text, err, c.want)
		}
	}
}
