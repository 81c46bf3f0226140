package story

import "testing"

// TestQuickStart_asInTheReadme: the README has exactly the commands that the story
// runs.
func TestQuickStart_asInTheReadme(t *testing.T) {
	commands, err := quickStartCommands("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if commands[0] != "kubectl apply -f examples/pod.yaml" {
		t.Errorf("the quick start begins with %q", commands[0])
	}
}
