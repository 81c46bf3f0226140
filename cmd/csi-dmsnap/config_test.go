package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Every key of the configuration reaches the pool.
func TestReadConfig_keys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := `
pools:
- name: fast
  volumeGroup: vg_fast
  devices: [/dev/nvme*n1, "/dev/disk/by-id/wwn-0x5"]
  create: true
- name: adopted
  volumeGroupIDs: [aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg]
  chunkSize: 64Ki
  firstStoreSize: 1Gi
  storeStep: 512Mi
  burstRate: 3Gi
  layerReservePercent: 10
  noFolding: true
  clean: first-use
- name: trial
  file: /var/lib/csi-dmsnap/trial.img
  size: 20Gi
  extentSize: 1Mi
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	groups := []string{"vg_fast", "adopted", "trial"}
	want := []pool.Config{
		{Name: "fast", VolumeGroup: "vg_fast", Devices: []string{"/dev/nvme*n1", "/dev/disk/by-id/wwn-0x5"}, Create: true, Groups: groups},
		{Name: "adopted", VolumeGroup: "adopted", VolumeGroupIDs: []lvm2.ID{"aaaaaabbbbccccddddeeeeffffgggggg"}, Groups: groups, Chunk: 64 * size.KiB, FirstStore: size.GiB, StoreStep: 512 * size.MiB, BurstRate: 3 * size.GiB, LayerReserve: 10, NoFolding: true, Clean: pool.CleanFirstUse},
		{Name: "trial", VolumeGroup: "trial", File: "/var/lib/csi-dmsnap/trial.img", Size: 20 * size.GiB, ExtentSize: size.MiB, Groups: groups},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, err := readConfig(path + "x"); err == nil || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("missing file: %v", err)
	}
}

// A configuration that is wrong is refused, and the error names the key or the pool.
func TestParseConfig_refuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "no pools",
		"pools: []":                   "no pools",
		"pool: []":                    "unknown field",
		"pools: [":                    "yaml",
		"pools: [{device: x}]":        "unknown field",
		"pools: [{name: a, name: b}]": "already set",
		"pools: [{volumeGroup: vg}]":  "name",
		"pools: [{name: Fast}]":       "name",
		"pools: [{name: " + strings.Repeat("a", 25) + "}]":                  "name",
		"pools: [{name: a, volumeGroup: -vg}]":                              "-vg",
		"pools: [{name: a, volumeGroup: a/b}]":                              "a/b",
		"pools: [{name: a}, {name: a, volumeGroup: b}]":                     "another pool",
		"pools: [{name: a}, {name: b, volumeGroup: a}]":                     "another pool",
		"pools: [{name: a, devices: [sda]}]":                                "absolute",
		"pools: [{name: a, volumeGroupIDs: [abc]}]":                         "volumeGroupIDs",
		`pools: [{name: a, devices: ["/dev/[sd"]}]`:                         "pattern",
		"pools: [{name: a, create: true}]":                                  "devices",
		"pools: [{name: a, file: x.img, size: 1Gi}]":                        "absolute",
		"pools: [{name: a, file: /x.img}]":                                  "size",
		"pools: [{name: a, size: 1Gi}]":                                     "file",
		"pools: [{name: a, file: /x.img, size: 1Gi, devices: [/dev/a]}]":    "exclude each other",
		"pools: [{name: a, file: /x.img, size: 1Gi, extentSize: 3Mi}]":      "extent",
		"pools: [{name: a, file: /x.img, size: 1Gi, extentSize: 256Ki}]":    "extent",
		"pools: [{name: a, chunkSize: 1x}]":                                 "chunkSize",
		"pools: [{name: a, chunkSize: 5000}]":                               "chunk",
		"pools: [{name: a, layerReservePercent: 95}]":                       "reserve",
		"pools: [{name: a, hydrationSharePercent: 0}]":                      "hydrationSharePercent",
		"pools: [{name: a, chunkSize: 0}]":                                  "chunkSize",
		"pools: [{name: a, firstStoreSize: 0}]":                             "firstStoreSize",
		"pools: [{name: a, storeStep: 0}]":                                  "storeStep",
		"pools: [{name: a, burstRate: 0}]":                                  "burstRate",
		"pools: [{name: a, volumeGroup: " + strings.Repeat("a-", 30) + "}]": "each hyphen counts twice",
		"pools: [{name: a, file: /x.img, size: 1gb}]":                       "1gb",
		"pools: [{name: a, clean: sometimes}]":                              "clean",
	} {
		if c, err := parseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, error %v, want one with %q", text, c, err, want)
		}
	}
}

// A number that is 0 differs from a number that is left out.
func TestParseConfig_zero(t *testing.T) {
	for text, want := range map[string]pool.Config{
		"":                       {},
		"layerReservePercent: 0": {NoReserve: true},
		"layerReservePercent: 5": {LayerReserve: 5},
		"hydrationRate: 0":       {},
		"hydrationRate: '0'":     {},
		"hydrationRate: 1Mi":     {HydrationRate: size.MiB},
	} {
		got, err := parseConfig([]byte("pools: [{name: a, " + text + "}]"))
		want.Name, want.VolumeGroup, want.Groups = "a", "a", []string{"a"}
		if err != nil || !reflect.DeepEqual(got, []pool.Config{want}) {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
}

// Stores that could be full before they grow are not configured: smaller sizes count as
// the least that burstRate and chunkSize allow.
func TestParseConfig_smallStores(t *testing.T) {
	for text, want := range map[string]size.Bytes{
		"firstStoreSize: 4Mi, storeStep: 1Mi":                                    118 * size.MiB,
		"firstStoreSize: 4Mi, storeStep: 1Mi, chunkSize: 64Ki":                   334 * size.MiB,
		"firstStoreSize: 4Mi, storeStep: 1Mi, chunkSize: 4Ki, burstRate: 100Mi":  23 * size.MiB,
		"firstStoreSize: 500Mi, storeStep: 500Mi, chunkSize: 4Ki, burstRate: 1M": 500 * size.MiB,
	} {
		got, err := parseConfig([]byte("pools: [{name: a, " + text + "}]"))
		if err != nil || got[0].FirstStore.RoundUp(size.MiB) != want || got[0].StoreStep.RoundUp(size.MiB) != want {
			t.Errorf("%s: %+v, %v; want %v", text, got, err, want)
		}
	}
}

// Quantities of Kubernetes are read, and only whole numbers of bytes are accepted:
// nothing is rounded or capped.
func TestParseQuantity_wholeNumbersOnly(t *testing.T) {
	for text, want := range map[string]size.Bytes{
		"1": 1, "512Ki": 512 * size.KiB, "1.5Gi": 1536 * size.MiB, "20Gi": 20 * size.GiB, "2T": 2e12,
		"7k": 7000, "8191Pi": 8191 << 50, "0.5Ki": 512, "007": 7, "0.001k": 1, "9223372036854775806": 1<<63 - 2,
		// Notations that only the library of Kubernetes knows.
		"1Ei": 1 << 60, "1e3": 1000, "1E3": 1000, "2E": 2e18, "+1Gi": size.GiB, ".5Gi": 512 * size.MiB, "1.Gi": size.GiB, "2000m": 2,
		"": 0, "0": 0, "0Gi": 0, "-1Gi": 0, "1gi": 0, "1K": 0, "1.5": 0, "1500m": 0, "0.3Ki": 0, "1n": 0, "Gi": 0, "1 Gi": 0, "0x10": 0,
		"8192Pi": 0, "9223372036854775807": 0, "9223372036854775808": 0, "100E": 0,
	} {
		got, err := parseQuantity(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// A node gets the pools whose patterns match its name, and the pools without patterns.
func TestPoolsOn_patterns(t *testing.T) {
	configs, err := parseConfig([]byte(`
pools:
- {name: everywhere}
- {name: workers, nodes: ["worker-*", "db-[12].example.org"], optional: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	if configs[0].Optional || !configs[1].Optional {
		t.Errorf("%+v", configs)
	}
	for node, want := range map[string]int{"worker-7": 2, "db-1.example.org": 2, "db-3.example.org": 1, "a-worker-7": 1, "": 1} {
		got := poolsOn(node, configs)
		if len(got) != want || len(got[0].Groups) != 2 {
			t.Errorf("%q has %+v", node, got)
		}
	}
	for _, text := range []string{
		`pools: [{name: a, nodes: ["x["]}]`, `pools: [{name: a, nodes: [""]}]`, `pools: [{name: a, file: /d/a.img, size: 1Gi, optional: true}]`,
	} {
		if c, err := parseConfig([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, c)
		}
	}
}
