// Package cluster is what the driver needs of Kubernetes: which nodes run the
// driver, the claims that volumes are made for, and the objects that stand for
// volumes and snapshots.
package cluster

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns how to reach the API server: as that kubeconfig file says; if
// none is given, as KUBECONFIG and the user's own one do; if there are none, as
// the service account of the pod that we run in.
func Config(kubeconfig, program string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no way to the Kubernetes API (give --kubeconfig outside of a cluster): %w", err)
	}
	config.UserAgent = program
	// One look-up per new volume whose node may be chosen: client-go's default
	// of five a second would hold up a burst of them.
	config.QPS, config.Burst = 50, 100
	return config, nil
}
