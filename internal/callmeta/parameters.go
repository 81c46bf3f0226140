package callmeta

import "fmt"

// Parameters of a CreateVolume request that both roles look at.
const (
	// ParameterTransient asks for a scratch copy of a source, which is lost with
	// the machine's memory.
	ParameterTransient = "transient"
	// ParameterModeChange lets a raw block volume's content be mounted as a file system.
	ParameterModeChange = "allowVolumeModeChange"

	// What csi-provisioner adds with --extra-create-metadata: the claim.
	ParameterClaimName      = "csi.storage.k8s.io/pvc/name"
	ParameterClaimNamespace = "csi.storage.k8s.io/pvc/namespace"
)

// Transient tells whether the parameters ask for a transient volume.
func Transient(parameters map[string]string) (bool, error) {
	return flag(parameters, ParameterTransient)
}

// ModeChange tells whether the parameters let a file system be made of a raw block
// volume's content.
func ModeChange(parameters map[string]string) (bool, error) {
	return flag(parameters, ParameterModeChange)
}

func flag(parameters map[string]string, key string) (bool, error) {
	switch value := parameters[key]; value {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	default:
		return false, fmt.Errorf("parameter %s is %q: it must be \"true\" or \"false\"", key, value)
	}
}
