package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	logsapi "k8s.io/component-base/logs/api/v1"
)

// asProgram is the environment variable that makes the test binary the program
// itself, so that tests can start it, and end it by signals.
const asProgram = "CSI_DMSNAP_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	// The program applies its logging flags once, before anything logs; tests run
	// many commands in one process.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	if err := logsapi.ValidateAndApply(logsapi.NewLoggingConfiguration(), nil); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// program runs the program with arguments and returns what it printed and its
// exit code.
func program(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// The commands check their arguments and flags.
func TestCommand_arguments(t *testing.T) {
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

// Every command but version is in a group of the help.
func TestCommand_groups(t *testing.T) {
	for _, c := range command().Commands() {
		if c.GroupID == "" && c.Name() != "version" {
			t.Errorf("%s is in no group", c.Name())
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q", c.Name(), c.Short)
		}
	}
	for _, line := range strings.Split(command().Long, "\n") {
		if len(line) > 90 {
			t.Errorf("too long for a terminal: %s", line)
		}
	}
	out, complaint, code := program(t, "--help")
	if code != 0 || complaint != "" {
		t.Errorf("--help: %d, %s", code, complaint)
	}
	last := -1
	for _, want := range []string{"Exit codes:", "Serve:\n  controller", "Look:\n  check", "Change:\n  adopt", "Cluster:\n  forget-node"} {
		i := strings.Index(out, want)
		if i <= last {
			t.Errorf("%q is not in its place in\n%s", want, out)
		}
		last = i
	}
}
