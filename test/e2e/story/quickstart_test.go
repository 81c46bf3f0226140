package story

import "testing"

// TestQuickStart sees to it that the README has what is run.
func TestQuickStart(t *testing.T) {
	commands, err := quickStartCommands("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if commands[0] != "kubectl apply -f examples/pod.yaml" {
		t.Errorf("it begins with %q", commands[0])
	}
}
