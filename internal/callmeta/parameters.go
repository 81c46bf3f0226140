package callmeta

import "fmt"

// Parameters of a CreateVolume request that both roles read.
const (
	// ParameterTransient asks for a scratch copy of a source, which a restart of the
	// machine destroys.
	ParameterTransient = "transient"
	// ParameterModeChange lets a raw block volume's content be mounted as a file system.
	ParameterModeChange = "allowVolumeModeChange"

	// ParameterPool is the pool that the class names.
	ParameterPool = "pool"

	// ParameterPrefix begins the parameters that csi-provisioner adds.
	ParameterPrefix = "csi.storage.k8s.io/"
	// csi-provisioner adds the claim with --extra-create-metadata.
	ParameterClaimName      = ParameterPrefix + "pvc/name"
	ParameterClaimNamespace = ParameterPrefix + "pvc/namespace"
)

// Transient reports whether the parameters ask for a transient volume.
func Transient(parameters map[string]string) (bool, error) {
	return flag(parameters, ParameterTransient)
}

// ModeChange reports whether the parameters let the content of a raw block volume be
// mounted as a file system.
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
