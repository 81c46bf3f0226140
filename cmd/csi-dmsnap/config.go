package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// configFile is the file given by --config.
type configFile struct {
	Pools []poolConfig `json:"pools"`
}

// poolConfig is one pool of the file: a volume group on devices, or on a file.
type poolConfig struct {
	Name           string   `json:"name"`
	VolumeGroup    string   `json:"volumeGroup"`
	VolumeGroupIDs []string `json:"volumeGroupIDs"`
	Devices        []string `json:"devices"`
	Create         bool     `json:"create"`
	Nodes          []string `json:"nodes"`
	Optional       bool     `json:"optional"`
	File           string   `json:"file"`
	Size           string   `json:"size"`
	ExtentSize     string   `json:"extentSize"`

	ChunkSize           string `json:"chunkSize"`
	FirstStoreSize      string `json:"firstStoreSize"`
	StoreStep           string `json:"storeStep"`
	BurstRate           string `json:"burstRate"`
	LayerReservePercent *uint  `json:"layerReservePercent"` // nil: the default; 0: no reserve
	NoFolding           bool   `json:"noFolding"`
	Clean               string `json:"clean"`

	HydrationRate         string `json:"hydrationRate"`
	HydrationSharePercent *uint  `json:"hydrationSharePercent"`
}

// readConfig reads and checks the configuration file. Its errors name the file,
// and the pool and key that are wrong.
func readConfig(path string) ([]pool.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	configs, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return configs, nil
}

func parseConfig(text []byte) ([]pool.Config, error) {
	var file configFile
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return nil, err
	}
	if len(file.Pools) == 0 {
		return nil, errors.New("no pools")
	}
	var configs []pool.Config
	seen := map[string]bool{}
	for _, entry := range file.Pools {
		c, err := entry.config()
		if err != nil {
			return nil, fmt.Errorf("pool %q: %w", entry.Name, err)
		}
		for _, key := range []string{"name " + c.Name, "volume group " + c.VolumeGroup} {
			if seen[key] {
				return nil, fmt.Errorf("pool %q: another pool has the same %s", c.Name, key)
			}
			seen[key] = true
		}
		configs = append(configs, c)
	}
	groups := make([]string, len(configs))
	for i, c := range configs {
		groups[i] = c.VolumeGroup
	}
	for i := range configs {
		configs[i].Groups = groups
	}
	return configs, nil
}

// poolsOn returns the pools that the configuration gives to a node.
func poolsOn(node string, configs []pool.Config) []pool.Config {
	return slices.DeleteFunc(slices.Clone(configs), func(c pool.Config) bool { return !c.On(node) })
}

func (p poolConfig) config() (pool.Config, error) {
	c := pool.Config{
		Name: p.Name, VolumeGroup: p.VolumeGroup, Devices: p.Devices, Create: p.Create, File: p.File,
		Nodes: p.Nodes, Optional: p.Optional,
		NoFolding: p.NoFolding, Clean: pool.Cleaning(p.Clean),
	}
	if n := p.LayerReservePercent; n != nil {
		c.LayerReserve, c.NoReserve = *n, *n == 0
	}
	if n := p.HydrationSharePercent; n != nil {
		if c.HydrationShare = *n; *n == 0 {
			return c, errors.New("hydrationSharePercent: must be at least 1; with 0 nothing would be copied beside other I/O")
		}
	}
	if c.VolumeGroup == "" {
		c.VolumeGroup = c.Name
	}
	for _, text := range p.VolumeGroupIDs {
		id, err := lvm2.ParseID(text)
		if err != nil {
			return c, fmt.Errorf("volumeGroupIDs: %w", err)
		}
		c.VolumeGroupIDs = append(c.VolumeGroupIDs, id)
	}
	for _, glob := range p.Devices {
		if _, err := filepath.Match(glob, ""); err != nil || !filepath.IsAbs(glob) {
			return c, fmt.Errorf("device %q is not an absolute path or pattern", glob)
		}
	}
	switch {
	case p.File != "" && !filepath.IsAbs(p.File):
		return c, fmt.Errorf("file %q is not an absolute path", p.File)
	case p.File == "" && p.Size != "":
		return c, errors.New("size is only for a pool on a file; drop it, or set file")
	}
	for _, q := range []struct {
		key, text string
		value     *size.Bytes
	}{
		{"size", p.Size, &c.Size}, {"extentSize", p.ExtentSize, &c.ExtentSize}, {"chunkSize", p.ChunkSize, &c.Chunk}, {"firstStoreSize", p.FirstStoreSize, &c.FirstStore},
		{"storeStep", p.StoreStep, &c.StoreStep}, {"burstRate", p.BurstRate, &c.BurstRate},
		{"hydrationRate", p.HydrationRate, &c.HydrationRate},
	} {
		if q.text == "" || q.key == "hydrationRate" && q.text == "0" { // 0 means no limit
			continue
		}
		var err error
		if *q.value, err = parseQuantity(q.text); err != nil {
			return c, fmt.Errorf("%s: %w", q.key, err)
		}
	}
	if err := c.Check(); err != nil {
		return c, err
	}
	return withSafeStores(c), nil
}

// withSafeStores raises store sizes with which stores could be full before they grow.
func withSafeStores(c pool.Config) pool.Config {
	for _, length := range []*size.Bytes{&c.FirstStore, &c.StoreStep} {
		if *length != 0 {
			*length = max(*length, c.LeastStore())
		}
	}
	return c
}

// parseQuantity reads a number of bytes in the notation of Kubernetes: 20Gi,
// 1.5T, 1073741824.
//
// Errors: not a quantity, or not a whole number of bytes from 1 to 2^63-2.
func parseQuantity(s string) (size.Bytes, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("invalid quantity %q: %w", s, err)
	}
	// Value rounds a fraction up, and ParseQuantity turns a larger number into 2^63-1.
	n := q.Value()
	if q.CmpInt64(n) != 0 || n <= 0 || n == math.MaxInt64 {
		return 0, fmt.Errorf("invalid quantity %q: must be a whole number of bytes, at least 1 and below 2^63-1", s)
	}
	return size.Bytes(n), nil
}
