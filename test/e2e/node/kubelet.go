package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// The node has one slow processor and no cpuset controller. Its image store
// must never evict anything, because there is no registry to fetch it again.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: false}
  x509: {clientCAFile: %q}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://` + containerdSocket + `
cgroupDriver: cgroupfs
cgroupRoot: /
enforceNodeAllocatable: []
cpuManagerPolicy: none
failSwapOn: false
protectKernelDefaults: false
makeIPTablesUtilChains: false
resolvConf: /etc/resolv.conf
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", imagefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.inodesFree: "0%%"}
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
nodeStatusUpdateFrequency: 10s
syncFrequency: 20s
maxPods: 100
`

// kubelet writes the kubelet's configuration and returns how to start it.
func kubelet(c *Config) (process.Spec, error) {
	const file = "/etc/kubelet.yaml"
	text := fmt.Sprintf(kubeletConfig, c.shared(ClientCAFile))
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return process.Spec{}, err
	}
	return process.Spec{
		Argv: []string{
			filepath.Join(c.Programs, "kubelet"),
			"--kubeconfig=" + c.shared(KubeconfigFile),
			"--config=" + file,
			"--hostname-override=" + c.Name,
			"--node-ip=" + c.Address.Addr().String(),
			"--housekeeping-interval=1m",
			"--v=2",
		},
		Log: c.shared("kubelet.log"),
	}, nil
}
