package guest

// ConfigVar is the word of the kernel command line that names the file with
// the Config; the kernel hands it to its first process as environment.
const ConfigVar = "DMSNAP_GUEST_CONFIG"

// Config is what the runner tells the guest, as JSON.
type Config struct {
	// The command, its environment and its working directory.
	Argv []string
	Env  []string
	Dir  string

	// What the kernel needs before it has the host's file system: a directory
	// that has a module tree per kernel release, names of modules, mounts.
	EarlyModuleRoot string
	EarlyModules    []string
	EarlyMounts     []Mount

	HostRoot   string   // where the host's file system is mounted
	Shares     []Mount  // directories of the host that the command may write to
	Channel    string   // the device that leads to the runner
	ModuleRoot string   // like EarlyModuleRoot, on the host's file system
	Modules    []string // loaded before the command starts
	Modprobe   string   // this program on the host's file system
	Sync       bool     // the disks are kept: bring everything to them at the end
}

// Mount is one mount(2).
type Mount struct {
	Source, Target, Type, Data string
}
