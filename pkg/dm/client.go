package dm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Client talks to the kernel's device-mapper. Its methods may be called
// concurrently.
type Client struct {
	control
	dev    string // usually /dev
	udev   string // usually /run/udev
	listed listed
}

// Option changes what Open does.
type Option func(*Client)

// WithDev makes the client use dir instead of /dev.
func WithDev(dir string) Option { return func(c *Client) { c.dev = dir } }

// Open opens the control device, and creates its node if that is missing. The
// caller must Close the client.
//
// Errors: ErrNotSupported if the kernel has no device-mapper.
func Open(options ...Option) (*Client, error) {
	c := &Client{dev: "/dev", udev: "/run/udev"}
	for _, o := range options {
		o(c)
	}
	if err := ensureControlNode(c.controlPath(), "/proc/misc"); err != nil {
		return nil, err
	}
	var err error
	c.control, err = newControl(c.controlPath())
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("device-mapper: %w", err)
	}
	// Missing privileges and an unknown ABI must fail here, not in the middle of
	// the first change.
	if _, err := c.Version(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Client) controlPath() string { return filepath.Join(c.dev, "mapper", "control") }

// Close closes the control device after running calls have ended.
func (c *Client) Close() error { return c.file.Close() }

// ensureControlNode creates the control node at path if nothing is there. misc
// is a file like /proc/misc, which has the minor number.
func ensureControlNode(path, misc string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	minor, err := miscMinor(misc, "device-mapper")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	const miscMajor = 10
	err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, minor)))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create the node %s: %w", path, err)
	}
	return nil
}

// miscMinor looks up the minor number of a driver in a file like /proc/misc,
// which has a line "236 device-mapper".
func miscMinor(misc, driver string) (uint32, error) {
	f, err := os.Open(misc)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		minor, name, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if name != driver {
			continue
		}
		n, err := strconv.ParseUint(minor, 10, 20)
		if err != nil {
			return 0, fmt.Errorf("%s: line %q: %w", misc, lines.Text(), err)
		}
		return uint32(n), nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("%s: %w", misc, err)
	}
	return 0, ErrNotSupported
}

// Version is the version of the kernel's ioctl interface or of a target.
type Version struct{ Major, Minor, Patch uint32 }

// String prints v as "4.47.0".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Version returns the version of the kernel's ioctl interface.
func (c *Client) Version() (Version, error) {
	rep, err := c.call(context.Background(), opVersion, request{})
	return rep.version, err
}

// Targets returns the versions of the targets that the kernel has loaded, by
// name. The module of a missing target may just not be loaded, see
// TargetVersion.
func (c *Client) Targets() (map[string]Version, error) {
	rep, err := c.call(context.Background(), opTargets, request{answers: true})
	if err != nil {
		return nil, err
	}
	targets, err := decodeTargets(rep.data)
	if err != nil {
		return nil, &Error{opTargets.name, "", err}
	}
	return targets, nil
}

// TargetVersion returns the version of a target. The kernel loads the target's
// module if necessary.
//
// Errors: ErrNotFound if there is no such target.
func (c *Client) TargetVersion(name string) (Version, error) {
	fail := func(err error) (Version, error) { return Version{}, &Error{opTargetVersion.name, name, err} }
	if err := checkTypeName(name); err != nil {
		return fail(err)
	}
	rep, err := c.call(context.Background(), opTargetVersion, request{name: name, answers: true})
	if err != nil {
		return Version{}, err
	}
	targets, err := decodeTargets(rep.data)
	if err != nil {
		return fail(err)
	}
	v, ok := targets[name]
	if !ok {
		return fail(ErrNotFound)
	}
	return v, nil
}
