// Package node runs inside a node of the cluster. It turns a test kernel into a
// Kubernetes node with containerd and the kubelet, and runs commands for the
// tests.
package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Port is the TCP port on which the node accepts commands.
const Port = 7000

// PoolDevice is the node's spare disk, for the pool.
const PoolDevice = "/dev/ubdb"

// systemDevice is the disk with everything that must survive a reboot.
const systemDevice = "/dev/ubda"

// Config is the configuration of a node.
type Config struct {
	Name     string
	Address  netip.Prefix // of the node, with the gateway's network
	Gateway  netip.Addr
	Pods     netip.Prefix // the addresses of its pods
	Programs string       // directory of the programs
	Share    string       // directory of the host, for logs, the kubelet's kubeconfig and the clients' CA
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
