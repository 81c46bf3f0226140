package pool

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Config describes one pool.
type Config struct {
	Name        string // at most 24 bytes of [a-z0-9.-], beginning with a letter or digit
	VolumeGroup string // the LVM2 volume group; Name if empty
	// VolumeGroupIDs are those that the volume group may have: a group of that name
	// with another id is somebody else's. Empty: any.
	VolumeGroupIDs []lvm2.ID
	Groups         []string   // volume groups of the node's pools: no disk of a pool lies on them
	Devices        []string   // globs of block devices
	Optional       bool       // a node without a trace of it does without
	Nodes          []string   // patterns of the names of the nodes that have it; all if empty
	Create         bool       // initialise the blank ones of Devices
	File           string     // instead of Devices: a sparse file behind a loop device, for evaluation
	Size           size.Bytes // of File when it is made
	ExtentSize     size.Bytes // of the group when it is made, a power of two, 512 KiB at least; 4 MiB if 0

	Chunk          size.Bytes // of new snapshots' stores, a power of two; 16 KiB if 0
	FirstStore     size.Bytes // of a new snapshot's store; if 0 a tenth of the volume, at most 4 GiB and at least what BurstRate needs
	StoreStep      size.Bytes // by which a store grows at least; if 0 what BurstRate needs
	BurstRate      size.Bytes // that a volume writes in a second at most, from one moment to the next; 1 GiB if 0, more once more was seen
	NoFolding      bool       // leave the space of deleted snapshots in use as long as older ones read through them
	HydrationRate  size.Bytes // of restored volumes, a second; without limit if 0
	HydrationShare uint       // percent of the time that hydration takes while others use the disks; 25 if 0
	LayerReserve   uint       // percent of the pool that volumes leave to snapshots; 5 if 0, unless NoReserve says that none is meant
	NoReserve      bool       // volumes may take all extents, and the stores of snapshots then find none
	Clean          Cleaning   // when extents of unknown content are wiped

	cleanAfter time.Duration // instead of the constant, for tests
	lookEvery  time.Duration // instead of extendLook, for tests
}

// Options are what is per machine rather than per pool.
type Options struct {
	RunDir string    // directory of the pools' locks; /run/csi-dmsnap if empty
	LVM    lvm2.Host // where LVM2 keeps its locks and hints; its defaults if empty
	By     string    // who gives a command, for the record of what it changes; nothing is recorded if empty

	told *told // what earlier attempts to open the pool have logged of its devices
}

const (
	defaultRunDir  = "/run/csi-dmsnap"
	defaultChunk   = 16 * size.KiB
	defaultReserve = 5
	defaultShare   = 25

	leastExtent, mostExtent = cow.MaxChunk, size.GiB // of a group that is made
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
	if o.told == nil {
		o.told = &told{why: map[string]string{}}
	}
	if o.LVM.DevicesFile == "" {
		o.LVM.DevicesFile = lvm2.DevicesFile(lvm2.SystemDir())
	}
	if o.LVM.Hostname == "" {
		o.LVM.Hostname, _ = os.Hostname() // only informs people
	}
	return o
}

var poolName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,23}$`)

// Check returns an error that says what is wrong with the configuration.
func (c Config) Check() error {
	if !poolName.MatchString(c.Name) {
		return fmt.Errorf("%w: pool name %q must have 1 to 24 characters of a-z, 0-9, dot and hyphen, and begin with a letter or digit", ErrInvalid, c.Name)
	}
	if c.VolumeGroup != "" {
		if err := checkGroupName(c.VolumeGroup); err != nil {
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
