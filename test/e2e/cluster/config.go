// Package cluster runs a Kubernetes cluster on one machine. The control plane
// consists of processes, the nodes are test kernels, and all have a network
// namespace of their own.
//
// A daemon is the parent of all processes. When the daemon ends, for whatever
// reason, all of them end, and only files are left. The daemon accepts commands
// on a socket.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// Config is the configuration of a cluster.
type Config struct {
	Dir      string // the cluster's directory
	Programs string
	Runner   string // the testkernel program
	Self     string // this program, which is also a node's first program
	Golden   string // file of the nodes' initial system disk
	Nodes    int
	Memory   string // of a node, in the form of the runner's flag
	Address  string // of the API server for clients outside of the namespace
}

// NodeName returns the name of the node with the number i, from 1.
func NodeName(i int) string { return "node-" + strconv.Itoa(i) }

// file returns the path of a file in the cluster's directory.
func (c *Config) file(name string) string { return filepath.Join(c.Dir, name) }

// Kubeconfig returns the kubeconfig for clients outside of the namespace.
func (c *Config) Kubeconfig() string { return c.file("kubeconfig") }

// Logs returns the directory with a node's logs.
func (c *Config) Logs(node string) string { return c.file(node) }

const (
	socketFile    = "control.sock"
	configFile    = "cluster.json"
	daemonFile    = "daemon.json"
	daemonLogFile = "daemon.log"
)

func (c *Config) save() error { return writeJSON(c.file(configFile), c) }

// LoadConfig reads the configuration of the cluster in the directory.
func LoadConfig(dir string) (*Config, error) {
	c := &Config{}
	if err := readJSON(filepath.Join(dir, configFile), c); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("no cluster in %s; run make cluster", dir)
		}
		return nil, err
	}
	return c, nil
}

func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

func readJSON(file string, v any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// daemonRecord identifies the daemon's process. It has the time of the start,
// because process ids are used again.
type daemonRecord struct {
	Pid   int
	Start string
}

// alive reports whether the recorded process is still running.
func (d daemonRecord) alive() bool {
	start, err := process.StartTime(d.Pid)
	return err == nil && start == d.Start
}

// Time limits for a busy machine.
const (
	bootTimeout = 4 * time.Minute
	stopTimeout = time.Minute
)
