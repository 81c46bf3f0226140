package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// choose returns the kernel to use: host, or one of umlKernels or machines.
func choose(kernel string) (string, error) {
	if _, ok := umlKernels[kernel]; ok {
		return kernel, nil
	}
	if _, ok := machines[kernel]; ok {
		return kernel, nil
	}
	switch kernel {
	case "host":
		if err := hostUsable(); err != nil {
			return "", fmt.Errorf("the host's kernel cannot be used: %w", err)
		}
		return kernel, nil
	case "auto":
		host := hostUsable()
		if host == nil {
			return "host", nil
		}
		if _, err := exec.LookPath(umlBinary); err == nil {
			return "uml", nil
		}
		if _, err := exec.LookPath(machines[qemu].program); err == nil {
			return qemu, nil
		}
		return "", fmt.Errorf("no test kernel: the host's kernel cannot be used (%w), and neither the Debian package "+
			"user-mode-linux nor qemu-system-x86 is installed; run hack/deps.sh", host)
	}
	return "", fmt.Errorf("unknown kernel %q: must be %s", kernel, kernelNames())
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment returns the command's environment: the variables in set, then the
// runner's own. It adds HOME and PATH if neither has them.
func environment(set ...string) []string {
	have := map[string]bool{}
	for _, kv := range set {
		name, _, _ := strings.Cut(kv, "=")
		have[name] = true
	}
	env := set
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !have[name] {
			have[name] = true
			env = append(env, kv)
		}
	}
	for name, value := range map[string]string{
		"HOME": "/root",
		"PATH": defaultPath,
	} {
		if !have[name] {
			env = append(env, name+"="+value)
		}
	}
	return env
}
