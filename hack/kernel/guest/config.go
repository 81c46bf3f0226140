package guest

// ConfigVar is the word of the kernel's command line that names the file with
// the Config. The kernel passes it to the first process as an environment
// variable.
const ConfigVar = "DMSNAP_GUEST_CONFIG"

// Config is the guest's configuration, which the runner writes as JSON.
type Config struct {
	// The command, its environment and its working directory.
	Argv []string
	Env  []string
	Dir  string

	// Needed before the host's file system is mounted: a directory with a
	// module tree for each kernel release, names of modules, mounts.
	EarlyModuleRoot string
	EarlyModules    []string
	EarlyMounts     []Mount

	HostRoot   string   // where the host's file system is mounted; after what lies over it, separated by a colon
	Shares     []Mount  // directories of the host that the command may write to
	Channel    string   // the device of the serial line to the runner
	ModuleRoot string   // like EarlyModuleRoot, on the host's file system
	Modules    []string // loaded before the command starts
	Modprobe   string   // this program on the host's file system
	Sync       bool     // some disk is kept: sync the disks at the end
}

// Mount is one mount(2).
type Mount struct {
	Source, Target, Type, Data string
}
