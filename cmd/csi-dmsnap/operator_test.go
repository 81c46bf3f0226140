package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Invalid flags are refused before the command reads any disk.
func TestOperator_invalidFlags(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("pools: [{name: a}, {name: b}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"pools", "--config", config, "-o", "xml"}, `invalid output "xml"`, 1},
		{[]string{"volumes", "--config", config, "--pool", "c"}, `no pool "c"; it has a, b`, 1},
		{[]string{"snapshots", "--config", config + "x"}, "config.yamlx", 1},
		{[]string{"tree", "--config", config}, "arg", 1},
		{[]string{"check", "--config", config, "--pool", "c"}, `no pool "c"`, 2},
		{[]string{"check", "--nonsense"}, "nonsense", 2},
	} {
		root := command()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(c.args)
		ran, err := root.ExecuteC()
		if err == nil || !strings.Contains(err.Error(), c.want) || exitCode(ran, err) != c.code || out.Len() > 0 {
			t.Errorf("%v: %v, exit code %d, output %q; want %q, %d", c.args, err, exitCode(ran, err), out.String(), c.want, c.code)
		}
	}
}
