// Package node is what runs inside a node of the cluster: it turns a test
// kernel into a Kubernetes node with containerd and the kubelet, and carries
// out commands for the tests.
package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Port is the TCP port on which the node takes commands.
const Port = 7000

// PoolDevice is the node's spare disk, the one for the pool.
const PoolDevice = "/dev/ubdb"

// systemDevice is the disk that keeps what a reboot must not lose.
const systemDevice = "/dev/ubda"

// Config is what a node is told.
type Config struct {
	Name     string
	Address  netip.Prefix // of the node, with the network that the gateway is in
	Gateway  netip.Addr
	Pods     netip.Prefix // addresses for its pods
	Programs string       // directory of the programs
	Share    string       // directory of the host for logs; has the kubelet's kubeconfig and the clients' CA
}

// The files of the shared directory.
const (
	configFile     = "node.json"
	KubeconfigFile = "kubelet.kubeconfig"
	ClientCAFile   = "client-ca.crt"
)

// Save writes the configuration into the shared directory.
func (c *Config) Save() error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(c.shared(configFile), data, 0o644)
}

// Load reads the configuration from the shared directory.
func Load(share string) (*Config, error) {
	data, err := os.ReadFile(filepath.Join(share, configFile))
	if err != nil {
		return nil, err
	}
	c := &Config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("configuration of the node: %w", err)
	}
	return c, nil
}

func (c *Config) shared(name string) string { return filepath.Join(c.Share, name) }
