// Package cluster runs a Kubernetes cluster on one machine: a control plane of
// processes, and nodes that are test kernels, in a network namespace of their own.
//
// A daemon is the parent of all of it; when the daemon ends, by whatever, so
// does all of it, and nothing is left but files. It takes commands on a socket.
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

// Config is a cluster.
type Config struct {
	Dir      string // the cluster's directory
	Programs string
	Runner   string // the testkernel program
	Self     string // this program, which is a node's first one as well
	Golden   string // file of the system disk that nodes begin with
	Nodes    int
	Memory   string // of a node, as the runner takes it
	Address  string // of the API server for clients outside of the namespace
}

// NodeName returns the name of the node with the number i, from 1.
func NodeName(i int) string { return "node-" + strconv.Itoa(i) }

// The files of the cluster's directory.
func (c *Config) file(name string) string { return filepath.Join(c.Dir, name) }

// Kubeconfig is the file that clients use.
func (c *Config) Kubeconfig() string { return c.file("kubeconfig") }

// Logs is the directory with a node's logs.
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
			return nil, fmt.Errorf("no cluster in %s: run make cluster", dir)
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

// daemonRecord tells which process the daemon is: ids are used again, so the
// time of its start goes with it.
type daemonRecord struct {
	Pid   int
	Start string
}

// alive says whether the process is still the one that was recorded.
func (d daemonRecord) alive() bool {
	start, err := process.StartTime(d.Pid)
	return err == nil && start == d.Start
}

// How long things may take on a busy machine.
const (
	bootTimeout = 4 * time.Minute
	stopTimeout = time.Minute
)
