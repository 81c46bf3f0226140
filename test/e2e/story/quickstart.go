package story

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/kube"
)

// quickStart runs the commands of the README's quick start unchanged, except
// for the installation, which has been done already.
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
				line += " " + kube.Patience // this machine is slow
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

// quickStartCommands returns the section's kubectl commands, except for those
// that install and uninstall. The section must clean up what it makes.
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
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(commands) < 5 || !slices.Contains(commands, "kubectl delete -f examples") {
		return nil, fmt.Errorf("the quick start in %s has unexpected commands: %q", readme, commands)
	}
	return commands, nil
}
