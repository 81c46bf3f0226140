package pool

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Config describes one pool.
type Config struct {
	Name        string // at most 24 bytes of [a-z0-9.-], beginning with a letter or digit
	VolumeGroup string // the LVM2 volume group; Name if empty
	// VolumeGroupIDs are the ids that the volume group may have; any id if empty. A
	// group of that name with another id belongs to somebody else.
	VolumeGroupIDs []lvm2.ID
	Groups         []string   // volume groups of the node's pools: no pool uses a disk that lies on them
	Devices        []string   // globs of block devices
	Optional       bool       // the pool may be missing on a node, if the node has no trace of it
	Nodes          []string   // patterns of the names of the nodes that have it; all nodes if empty
	Create         bool       // initialise the blank devices in Devices
	File           string     // instead of Devices: a sparse file behind a loop device, for evaluation
	Size           size.Bytes // size of a new File
	ExtentSize     size.Bytes // extent size of a new group, a power of two, at least 512 KiB; 4 MiB if 0

	Chunk          size.Bytes // chunk size of new snapshots' stores, a power of two; 16 KiB if 0
	FirstStore     size.Bytes // initial size of a new snapshot's store; if 0 a tenth of the volume, at most 4 GiB and at least LeastStore. Below LeastStore only in tests: a writer may fill such a store before it grows
	StoreStep      size.Bytes // least growth of a store; if 0 what BurstRate needs. Below LeastStore only in tests
	BurstRate      size.Bytes // highest write rate expected of a volume, per second; 1 GiB if 0. A higher observed rate replaces it
	NoFolding      bool       // keep the space of deleted snapshots in use while older ones read through them
	HydrationRate  size.Bytes // bytes copied per second to restored volumes; unlimited if 0
	HydrationShare uint       // percent of the time that hydration may copy while others use the disks; 25 if 0
	LayerReserve   uint       // percent of the pool that volumes leave to snapshots; if 0, 5 or, with NoReserve, none
	NoReserve      bool       // volumes may take all extents, so that stores of snapshots find none
	Clean          Cleaning   // when extents of unknown content are wiped

	cleanAfter time.Duration // replaces the constant, for tests
	lookEvery  time.Duration // replaces extendLook, for tests
}

// Options are the settings of the machine, shared by its pools.
type Options struct {
	RunDir string    // directory of the pools' locks; /run/csi-dmsnap if empty
	LVM    lvm2.Host // where LVM2 keeps its locks and hints; LVM2's defaults if empty
	By     string    // who gave a command, for the record of its changes; nothing is recorded if empty

	logged *deviceLog // what earlier attempts to open the pool have logged about its devices
}

const (
	defaultRunDir  = "/run/csi-dmsnap"
	defaultChunk   = 16 * size.KiB
	defaultReserve = 5
	defaultShare   = 25

	leastExtent, mostExtent = cow.MaxChunk, size.GiB // limits of the extent size of a new group
)

func (c Config) withDefaults() Config {
	if c.VolumeGroup == "" {
		c.VolumeGroup = c.Name
	}
	if c.Chunk == 0 {
		c.Chunk = defaultChunk
	}
	if c.BurstRate == 0 {
		c.BurstRate = defaultBurst
	}
	if c.HydrationShare == 0 {
		c.HydrationShare = defaultShare
	}
	if c.LayerReserve == 0 && !c.NoReserve {
		c.LayerReserve = defaultReserve
	}
	return c
}

func (o Options) withDefaults() Options {
	if o.RunDir == "" {
		o.RunDir = defaultRunDir
	}
	if o.logged == nil {
		o.logged = &deviceLog{why: map[string]string{}}
	}
	if o.LVM.DevicesFile == "" {
		o.LVM.DevicesFile = lvm2.DevicesFile(lvm2.SystemDir())
	}
	if o.LVM.Hostname == "" {
		o.LVM.Hostname, _ = os.Hostname() // the name only informs people
	}
	return o
}

var poolName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,23}$`)

// Check returns an error that describes the first mistake in the configuration; nil
// if there is none.
func (c Config) Check() error {
	if !poolName.MatchString(c.Name) {
		return fmt.Errorf("%w: pool name %q must have 1 to 24 characters of a-z, 0-9, dot and hyphen, and begin with a letter or digit", ErrInvalid, c.Name)
	}
	if c.VolumeGroup != "" {
		if err := catalog.CheckGroupName(c.VolumeGroup); err != nil {
			return fmt.Errorf("%w: pool %s: %w", ErrInvalid, c.Name, err)
		}
	}
	if c.File != "" && len(c.Devices) > 0 {
		return fmt.Errorf("%w: pool %s: devices and a file exclude each other; set only one", ErrInvalid, c.Name)
	}
	if c.Create && len(c.Devices) == 0 {
		return fmt.Errorf("%w: pool %s: create requires devices", ErrInvalid, c.Name)
	}
	if c.Optional && c.File != "" {
		return fmt.Errorf("%w: pool %s: a pool on a file cannot be optional, because a missing file is created", ErrInvalid, c.Name)
	}
	for _, n := range c.Nodes {
		if _, err := path.Match(n, ""); err != nil || n == "" {
			return fmt.Errorf("%w: pool %s: nodes: %q is not a name or a pattern", ErrInvalid, c.Name, n)
		}
	}
	if c.File != "" && c.Size == 0 {
		return fmt.Errorf("%w: pool %s: a file requires a size", ErrInvalid, c.Name)
	}
	if e := c.ExtentSize; e != 0 && (e < leastExtent || e > mostExtent || e&(e-1) != 0) {
		return fmt.Errorf("%w: pool %s: extent size %v must be a power of two from %v to %v", ErrInvalid, c.Name, e, leastExtent, mostExtent)
	}
	if c.HydrationShare > 100 {
		return fmt.Errorf("%w: pool %s: a hydration share of %d percent is more than 100", ErrInvalid, c.Name, c.HydrationShare)
	}
	if c.NoReserve && c.LayerReserve > 0 {
		return fmt.Errorf("%w: pool %s: a reserve of %d percent contradicts the choice of no reserve", ErrInvalid, c.Name, c.LayerReserve)
	}
	if c.LayerReserve > 90 {
		return fmt.Errorf("%w: pool %s: a reserve of %d percent leaves no room for volumes", ErrInvalid, c.Name, c.LayerReserve)
	}
	switch c.Clean {
	case "", CleanBackground, CleanFirstUse, CleanNever:
	default:
		return fmt.Errorf("%w: pool %s: clean is %q, but must be %s, %s or %s", ErrInvalid, c.Name, c.Clean, CleanBackground, CleanFirstUse, CleanNever)
	}
	if c.Chunk != 0 {
		if err := cow.CheckChunk(c.Chunk); err != nil {
			return fmt.Errorf("%w: pool %s: %w", ErrInvalid, c.Name, err)
		}
	}
	return nil
}
