package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The log is text unless --logging-format says json; then each line is an object
// with the keys that Kubernetes' own programs use.
func TestLoggingFlags_format(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("pools: [{name: a, nodes: [other]}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	const message = "The configuration has no pool for this node"
	// The node logs the message, and fails because of its endpoint.
	node := []string{"node", "--node-name", "n1", "--config", config, "--endpoint", "tcp://none"}
	_, text, code := program(t, node...)
	if first, _, _ := strings.Cut(text, "\n"); code != 1 || !strings.HasPrefix(first, "I") || !strings.HasSuffix(first, `"`+message+`" node="n1"`) {
		t.Errorf("text: %d, %s", code, text)
	}
	_, text, code = program(t, append(node, "--logging-format=json", "-v", "2")...)
	var line struct{ Msg, Node string }
	first, _, _ := strings.Cut(text, "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil || code != 1 || line.Msg != message || line.Node != "n1" {
		t.Errorf("json: %d, %v, %s", code, err, text)
	}
}

// Every command takes the logging flags, and refuses a format that does not exist.
func TestLoggingFlags_everyCommand(t *testing.T) {
	if _, complaint, code := program(t, "version", "-v", "4", "--vmodule=pool=4"); code != 0 {
		t.Errorf("%d, %s", code, complaint)
	}
	if _, complaint, code := program(t, "version", "--logging-format=xml"); code != 1 || !strings.Contains(complaint, "log format") {
		t.Errorf("%d, %s", code, complaint)
	}
}
