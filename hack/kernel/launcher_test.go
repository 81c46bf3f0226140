package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLauncher_goTestExec: hack/testkernel works as the -exec program of go test.
func TestLauncher_goTestExec(t *testing.T) {
	cmd := umlCommand(t)
	launcher, err := filepath.Abs("../testkernel")
	if err != nil {
		t.Fatal(err)
	}
	module := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module example\n\ngo 1.26\n",
		"p/p.go": "package p\n\nfunc Double(n int) int { return 2 * n }\n",
		"p/file": "in the package directory",
		"p/p_test.go": `package p

import (
	"os"
	"testing"
)

func TestPass(t *testing.T) {
	if Double(2) != 4 {
		t.Error("arithmetic")
	}
	for _, f := range []string{"file", "/dev/mapper/control"} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(t.TempDir()+"/f", nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestFail(t *testing.T) { t.Error("as it should") }
`,
	} {
		file := filepath.Join(module, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cover := filepath.Join(module, "cover.out")
	test := func(which string) (string, error) {
		c := exec.Command("go", "test", "-v", "-run", which, "-coverprofile", cover, "-exec", launcher+" exec", "./p")
		c.Dir, c.Env = module, append(cmd.Env, "GOFLAGS=")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := test("TestPass"); err != nil || !strings.Contains(out, "--- PASS: TestPass") {
		t.Errorf("%v:\n%s", err, out)
	}
	if profile, err := os.ReadFile(cover); err != nil || !strings.Contains(string(profile), "p.go:3.") {
		t.Errorf("coverage profile: %q, %v", profile, err)
	}
	if out, err := test("TestFail"); err == nil || !strings.Contains(out, "as it should") {
		t.Errorf("a test that fails: %v:\n%s", err, out)
	}
}
