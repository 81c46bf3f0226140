// Package cluster reads from Kubernetes what the driver needs: the nodes that run
// the driver, the claims for which volumes are created, and the objects that
// represent volumes and snapshots.
package cluster

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns how to reach the API server. It reads the given kubeconfig file. If
// kubeconfig is "", it reads the files in KUBECONFIG or the user's own file. If there
// are none, it takes the service account of the pod that it runs in.
func Config(kubeconfig, program string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no configuration for the Kubernetes API: %w; outside of a cluster, use --kubeconfig", err)
	}
	config.UserAgent = program
	// The default of client-go, five a second, would delay every burst of work. Each
	// client that is made of the configuration has a limit of its own.
	config.QPS, config.Burst = 50, 100
	return config, nil
}
