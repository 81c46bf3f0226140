package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Names of the objects of the simulated cluster.
const (
	namespace = "csi-dmsnap"
	daemonSet = "csi-dmsnap-node"
	account   = "csi-dmsnap-node"
)

// addNodes puts the Node objects and their pods into the API. The pods run and are
// not ready.
func addNodes(a *api, number int) {
	for i := range number {
		a.put("nodes", object{
			"metadata": object{"name": nodeName(i), "uid": "node-uid-" + nodeName(i), "labels": object{handle.TopologyKey: nodeName(i)}},
			"status":   object{"conditions": []object{{"type": "Ready", "status": "True", "lastTransitionTime": longAgo}}},
		})
		a.put("pods", pod(i, false))
	}
}

// longAgo is older than all claims.
var longAgo = time.Now().Add(-24 * time.Hour).UTC().Format(time.RFC3339)

// pod returns the pod of a node.
func pod(i int, ready bool) object {
	condition := "False"
	if ready {
		condition = "True"
	}
	return object{
		"metadata": object{
			"name": "pod-" + nodeName(i), "namespace": namespace, "uid": "pod-uid-" + nodeName(i), "creationTimestamp": longAgo,
			"labels":          object{"app.kubernetes.io/component": "node"},
			"ownerReferences": []object{{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": daemonSet, "uid": "daemonset", "controller": true}},
		},
		"spec": object{"nodeName": nodeName(i), "serviceAccountName": account, "containers": []object{}},
		"status": object{
			"phase": "Running", "podIPs": []object{{"ip": address(i)}},
			"conditions": []object{{"type": "Ready", "status": condition, "lastTransitionTime": longAgo}},
		},
	}
}

// addVolumes puts a PersistentVolume into the API for each volume of each node.
func addVolumes(a *api, number, volumes int) {
	for i := range number {
		e := newEngine(nodeName(i), int64(i), volumes, 0)
		for v, entry := range e.volumes {
			name := fmt.Sprintf("pv-%05d-%03d", i, v)
			a.put("persistentvolumes", object{
				"metadata": object{"name": name, "uid": "uid-of-" + name},
				"spec": object{
					"csi":      object{"driver": handle.Driver, "volumeHandle": idOfVolume(entry)},
					"claimRef": object{"namespace": "apps", "name": name, "uid": "claim-of-" + name},
				},
			})
		}
	}
}

// tokenOf returns the service account token of a node's pod.
func tokenOf(i int) string { return "token-of-" + nodeName(i) }

// reviewToken returns the status of a TokenReview.
func reviewToken(token string) object {
	node, ok := strings.CutPrefix(token, "token-of-")
	if !ok {
		return object{"authenticated": false}
	}
	return object{
		"authenticated": true, "audiences": []string{handle.Driver},
		"user": object{
			"username": "system:serviceaccount:" + namespace + ":" + account,
			"extra": object{
				"authentication.kubernetes.io/pod-name":  []string{"pod-" + node},
				"authentication.kubernetes.io/pod-uid":   []string{"pod-uid-" + node},
				"authentication.kubernetes.io/node-name": []string{node},
			},
		},
	}
}

// claimUID returns the UID of the claim with that number.
func claimUID(i int) string { return fmt.Sprintf("%08x-1111-4000-8000-%012x", i, i) }

// addClaim puts a claim without a selected node into the API.
func addClaim(a *api, i int) {
	a.put("persistentvolumeclaims", object{"metadata": object{
		"name": fmt.Sprintf("claim-%06d", i), "namespace": "apps", "uid": claimUID(i), "creationTimestamp": time.Now().UTC().Format(time.RFC3339),
	}})
}
