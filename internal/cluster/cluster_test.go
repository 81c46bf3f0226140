package cluster

import (
	"os"
	"path/filepath"
	"testing"
)

// TestConfig_sources: the given kubeconfig or KUBECONFIG is used, and without
// any cluster there is an error.
func TestConfig_sources(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if c, err := Config("", "test"); err == nil {
		t.Errorf("a cluster is found where there is none: %s", c.Host)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if c, err := Config(file, "test"); err == nil {
		t.Errorf("a missing kubeconfig leads to %s", c.Host)
	}
	err := os.WriteFile(file, []byte(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: k, cluster: {server: "https://kubernetes.example:6443"}}], contexts: [{name: c, context: {cluster: k}}]}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for env, given := range map[string]string{"": file, file: ""} {
		t.Setenv("KUBECONFIG", env)
		if c, err := Config(given, "test"); err != nil || c.Host != "https://kubernetes.example:6443" || c.UserAgent != "test" {
			t.Errorf("KUBECONFIG=%q, given %q: %v, %v", env, given, c, err)
		}
	}
}
