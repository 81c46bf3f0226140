// Package cluster is what the driver needs of Kubernetes: which nodes run the
// driver, the claims that volumes are made for, and the objects that a lost
// node leaves behind.
package cluster

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns how to reach the API server: as the kubeconfig file says, or
// as the service account of the pod that we run in if there is none.
func Config(kubeconfig, program string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("no way to the Kubernetes API (give --kubeconfig outside of a cluster): %w", err)
	}
	config.UserAgent = program
	// One look-up per new volume whose node may be chosen: client-go's default
	// of five a second would hold up a burst of them.
	config.QPS, config.Burst = 50, 100
	return config, nil
}
