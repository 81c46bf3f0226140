package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// TestRender_golden: the chart renders what the golden files have: in a review they
// show what a change does to a cluster. To accept a change: go test -update .
func TestRender_golden(t *testing.T) {
	for name, apis := range map[string][]string{
		"evaluation": {snapshotAPI},
		"production": nil, // without the snapshot CRDs
		"k0s":        {snapshotAPI},
		"microk8s":   {snapshotAPI},
		"everything": {snapshotAPI},
		"groups":     {snapshotAPI},
	} {
		t.Run(name, func(t *testing.T) {
			values, err := example(name + ".yaml")
			if os.IsNotExist(err) {
				values, err = readValues("testdata/values/" + name + ".yaml")
			}
			if err != nil {
				t.Fatal(err)
			}
			files, err := render(values, apis...)
			if err != nil {
				t.Fatal(err)
			}
			got := documents(files) + "--- NOTES\n" + files["NOTES.txt"]
			golden := filepath.Join("testdata", "golden", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := firstDifference(string(want), got); diff != "" {
				t.Errorf("%s differs from what the chart renders: %s; see -update", golden, diff)
			}
		})
	}
}

// TestGenerate_filesCurrent: the generated files are those that make chart would
// write.
func TestGenerate_filesCurrent(t *testing.T) {
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := firstDifference(string(got), want); diff != "" {
			t.Errorf("%s is not current; run make chart: %s", path, diff)
		}
	}
}

// firstDifference returns the first line in which two texts differ, or "".
func firstDifference(a, b string) string {
	if a == b {
		return ""
	}
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return "-" + x[i] + "\n+" + y[i]
		}
	}
	return "one text ends before the other"
}

// TestRender_refused: the chart refuses values with which the driver or a class would
// not work, and says why.
func TestRender_refused(t *testing.T) {
	pool := "pools: [{name: a}]\n"
	for values, want := range map[string]string{
		"{}":                           "pools is empty",
		"pools: []":                    "pools is empty",
		"pools: [{nam: a}]":            "nam",
		"pools: [{name: A}]":           "pattern",
		"pools: [{name: a, file: /a}]": "size",
		"pools: [{name: a, file: /a.img, size: 1Gi}]":                                                                                                   "directory of its own",
		"pools: [{name: a, devices: [sda]}]":                                                                                                            "pattern",
		"pools: [{name: a, create: true}]":                                                                                                              "devices",
		pool + "kubeletDir: var/lib/kubelet":                                                                                                            "pattern",
		pool + "kubeletDir: /var/lib/kubelet/":                                                                                                          "pattern",
		pool + "nodes: {}":                                                                                                                              "nodes",
		pool + "node: {hostNetwork: true}":                                                                                                              "hostNetwork",
		pool + "node: {updateStrategy: {rollingUpdate: {maxSurge: 1}}}":                                                                                 "maxSurge must be 0",
		pool + "node: {updateStrategy: {rollingUpdate: {maxSurge: 10%}}}":                                                                               "maxSurge must be 0",
		pool + "storageClasses: [{fsType: ext4}]":                                                                                                       "name",
		pool + "storageClasses: [{name: a, fsType: ext3}]":                                                                                              "fsType",
		"pools: [{name: a}, {name: b}]":                                                                                                                 "class dmsnap names no pool",
		"pools: [{name: a}, {name: b}]\nstorageClasses: [{name: x, pool: a}, {name: open}]":                                                             "class open names no pool, and a node has several: a, b",
		pool + "storageClasses: [{name: x, pool: b}]":                                                                                                   "class x has the pool b",
		"pools: [{name: a}, {name: a, volumeGroup: b}]":                                                                                                 "pools: pool a is listed twice",
		"pools: [{name: a}, {name: b, volumeGroup: a}]\nstorageClasses: []":                                                                             "pool b has the same volumeGroup as another pool: a",
		"pools: [{name: a, volumeGroup: " + strings.Repeat("v", 75) + "}]":                                                                              "too long",
		"pools: [{name: a, volumeGroup: " + strings.Repeat("v-", 25) + "}]":                                                                             "hyphens count twice",
		"pools: [{name: a, volumeGroup: .}]":                                                                                                            "not",
		"pools: [{name: a, file: /srv/a/img, size: 1Gi, devices: [/dev/sdb]}]":                                                                          "devices and a file",
		"pools: [{name: a, file: /srv/a/img, size: 1Gi, optional: true}]":                                                                               "cannot be optional",
		pool + "nodeGroups: [{name: g, nodeSelector: {a: b}, pools: [{name: b}, {name: b}]}]":                                                           "group g: pool b is listed twice",
		pool + "storageClasses: [{name: x, parameters: {tranzient: 'true'}}]":                                                                           "class x has the unknown parameter tranzient",
		pool + "storageClasses: [{name: x, parameters: {csi.storage.k8s.io/pvc/name: x}}]":                                                              "unknown parameter csi.storage.k8s.io/pvc/name",
		pool + "storageClasses: [{name: x, parameters: {transient: 'yes'}}]":                                                                            "transient",
		pool + "storageClasses: [{name: x, parameters: {fsType: xfs}}]":                                                                                 "use the key fsType of the class",
		pool + "storageClasses: [{name: x, parameters: {csi.storage.k8s.io/fstype: xfs}}]":                                                              "csi.storage.k8s.io/fstype differs from its fsType",
		pool + "storageClasses: [{name: x, parameters: {csi.storage.k8s.io/secret-name: x}}]":                                                           "a secret needs a name and a namespace",
		pool + "storageClasses: [{name: x, parameters: {csi.storage.k8s.io/node-stage-secret-namespace: x}}]":                                           "a secret needs a name and a namespace",
		"pools: [{name: a}, {name: b}]\nstorageClasses: [{name: x, parameters: {pool: a}}]":                                                             "use the key pool of the class",
		pool + "storageClasses: [{name: x, isDefault: true}, {name: z, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}]":            "more than one class is the default: x, z",
		pool + "storageClasses: [{name: x, isDefault: true}, {name: z, annotations: {storageclass.beta.kubernetes.io/is-default-class: 'true'}}]":       "the default: x, z",
		pool + "volumeSnapshotClasses: [{name: x, isDefault: true}, {name: z, annotations: {snapshot.storage.kubernetes.io/is-default-class: 'true'}}]": "volumeSnapshotClasses: more than one class is the default: x, z",
		pool + "volumeSnapshotClasses: [{name: x, parameters: {csi.storage.k8s.io/x: b}}]":                                                              "propertyName",
		pool + "image: {digest: 'sha256:1'}":                                                                                                            "digest",
		pool + "provisioner: {timeouts: 1s}":                                                                                                            "timeouts",
		pool + "provisioner: {timeout: 60}":                                                                                                             "timeout",
		pool + "storageClasses: [{name: x}, {name: x}]":                                                                                                 "x would be made twice",
		pool + "storageClasses: [{name: x}, {name: x-restore}]":                                                                                         "x-restore would be made twice",
		pool + "storageClasses: [{name: x, parameters: {pool: a}}]":                                                                                     "use the key pool of the class",
		pool + "volumeSnapshotClasses: [{name: x}, {name: x}]":                                                                                          "x is listed twice",
		pool + "volumeSnapshotClasses: [{name: x, parameters: {a: b}}]":                                                                                 "propertyName",
		pool + "nodeGroups: [{name: g, nodeSelector: {}}]":                                                                                              "nodeSelector",
		pool + "nodeGroups: [{name: g, nodeSelector: {a: b}, node: {}}]":                                                                                "node",
		pool + "nodeGroups: [{name: g, nodeSelector: {a: b}}, {name: g, nodeSelector: {a: c}}]":                                                         "g is listed twice",
		"nodeGroups: [{name: g, nodeSelector: {a: b}}]":                                                                                                 "g has no pools",
		pool + "nodeGroups: [{name: g, nodeSelector: {a: b}, updateStrategy: {rollingUpdate: {maxSurge: 1}}}]":                                          "maxSurge must be 0",
		pool + "certManager: {enabled: true}":                                                                                                           "issuerRef",
	} {
		parsed, err := parseValues(values)
		if err != nil {
			t.Fatalf("%s: %v", values, err)
		}
		if _, err := render(parsed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", values, err, want)
		}
	}
}

// TestDescription_oneLine: a description is the comment after "-- ", on one line, with
// "|" escaped.
func TestDescription_oneLine(t *testing.T) {
	values := "# not this\na: 1\n# -- One\n# two | three.\nb: {c: 1}\nd:\n  # -- Four.\n  e: []\n"
	text, err := readme([]byte(values))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{"| `a` | `1` |  |", "| `b` | `{\"c\":1}` | One two \\| three. |", "| `d.e` | `[]` | Four. |"} {
		if !strings.Contains(text, row+"\n") {
			t.Errorf("no row %q in\n%s", row, text)
		}
	}
}

// TestRender_sizes: the schema accepts the sizes that the driver accepts, and refuses
// other units.
func TestRender_sizes(t *testing.T) {
	for text, accepted := range map[string]bool{
		"20Gi": true, "1.5Ti": true, "1073741824": true, "1Ei": true, "1e9": true, "'1e9'": true, "'1E+9'": true, "2E": true, "'+1Gi'": true, ".5Gi": true,
		"1gi": false, "1 Gi": false, "1K": false, "'0x10'": false, "Gi": false, "'.'": false, "'-1Gi'": false,
	} {
		values, err := parseValues("pools: [{name: a, burstRate: " + text + "}]")
		if err != nil {
			t.Fatal(err)
		}
		if _, err = render(values, snapshotAPI); (err == nil) != accepted {
			t.Errorf("burstRate %s: %v", text, err)
		}
	}
}
