package kube

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The classes of the tests' values.
const (
	Class         = "dmsnap"
	RestoreClass  = "dmsnap-restore" // binds before a pod is scheduled
	SnapshotClass = "dmsnap"
)

// Image is the image of the pods.
const Image = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"

// Claim returns the manifest of a claim. source is a VolumeSnapshot, or "" for
// a new volume.
func Claim(name, class, size, source string) string {
	text := fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  storageClassName: %s
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %s}}
`, name, class, size)
	if source != "" {
		text += fmt.Sprintf("  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %s}\n", source)
	}
	return text
}

// Pod returns the manifest of a pod that runs a shell command. mounts maps
// paths to claims.
func Pod(name, script string, mounts map[string]string) string {
	var inside, volumes strings.Builder
	for _, path := range slices.Sorted(maps.Keys(mounts)) {
		fmt.Fprintf(&inside, "    - {name: %s, mountPath: %s}\n", mounts[path], path)
		fmt.Fprintf(&volumes, "  - {name: %s, persistentVolumeClaim: {claimName: %[1]s}}\n", mounts[path])
	}
	return pod(name, script, inside.String(), volumes.String())
}

func pod(name, script, mounts, volumes string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: %s
    command: [sh, -c, %q]
    volumeMounts:
%s  volumes:
%s`, name, Image, script, mounts, volumes)
}

// Ephemeral returns the manifest of a pod that runs a shell command with an
// ephemeral volume at /data, made from a VolumeSnapshot.
func Ephemeral(name, script, class, size, source string) string {
	return pod(name, script, "    - {name: data, mountPath: /data}\n", fmt.Sprintf(`  - name: data
    ephemeral:
      volumeClaimTemplate:
        spec:
          storageClassName: %s
          accessModes: [ReadWriteOnce]
          dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %s}
          resources: {requests: {storage: %s}}
`, class, source, size))
}

// Sleep is the shell command of a pod that only waits.
const Sleep = "exec sleep 1000000"

// Snapshot returns the manifest of a VolumeSnapshot of a claim.
func Snapshot(name, claim string) string {
	return fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec:
  volumeSnapshotClassName: %s
  source: {persistentVolumeClaimName: %s}
`, name, SnapshotClass, claim)
}

// Static returns the manifests of a PersistentVolume for the volume with this
// id on a node, and of a claim with the same name that is bound to it.
func Static(name, id, node, reclaim string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec:
  capacity: {storage: 320Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: %s
  storageClassName: %s
  csi:
    driver: dmsnap.csi-dmsnap.github.io
    volumeHandle: %q
    fsType: ext4
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - {key: topology.dmsnap.csi-dmsnap.github.io/node, operator: In, values: [%s]}
---
`, name, reclaim, Class, id, node) + Claim(name, Class, "320Mi", "") + "  volumeName: " + name + "\n"
}

// StaticSnapshot returns the manifests of a VolumeSnapshot for the snapshot
// with this id, and of a VolumeSnapshotContent with the same name. The content
// is deleted with the VolumeSnapshot.
func StaticSnapshot(name, namespace, id string) string {
	return fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: %[1]s}
spec:
  driver: dmsnap.csi-dmsnap.github.io
  deletionPolicy: Delete
  source: {snapshotHandle: %[3]q}
  volumeSnapshotRef: {name: %[1]s, namespace: %[2]s}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %[1]s}
spec:
  source: {volumeSnapshotContentName: %[1]s}
`, name, namespace, id)
}
