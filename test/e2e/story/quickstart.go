package story

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// quickStart runs the commands of the README's quick start, as they are there,
// but for the installation, which the cluster has had.
func (t *teller) quickStart(root string) ([]step, error) {
	commands, err := quickStartCommands(filepath.Join(root, "README.md"))
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, command := range commands {
		steps = append(steps, step{command, func(ctx context.Context) error {
			line := command
			if strings.HasPrefix(line, "kubectl wait ") {
				line += " " + kube.Patience // on a machine as slow as this
			}
			cmd := exec.CommandContext(ctx, "sh", "-ec", line)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Kubeconfig, "PATH="+filepath.Dir(t.Program)+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", line, err, out)
			}
			return nil
		}})
	}
	return steps, nil
}

var inlineDelete = regexp.MustCompile("`(kubectl delete [^`]*)`")

// quickStartCommands returns the commands of the section, indented ones and the
// one in its text that cleans up.
func quickStartCommands(readme string) ([]string, error) {
	f, err := os.Open(readme)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var commands []string
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "## ") {
			inside = line == "## Quick start on Kubernetes"
		}
		if !inside {
			continue
		}
		command, ok := strings.CutPrefix(line, "    kubectl ")
		if ok && !strings.Contains(command, "namespace") {
			commands = append(commands, "kubectl "+command)
		}
		if m := inlineDelete.FindStringSubmatch(line); m != nil {
			commands = append(commands, m[1])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(commands) < 5 || !strings.HasPrefix(commands[len(commands)-1], "kubectl delete ") {
		return nil, fmt.Errorf("the quick start in %s is not what it was: %q", readme, commands)
	}
	return commands, nil
}
