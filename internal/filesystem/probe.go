package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Exit codes of blkid's low-level probe, see blkid(8).
const (
	blkidNothing    = 2
	blkidAmbivalent = 8
)

// Probe returns the type of the file system on a device; "" if the device holds
// no known signature. The caller may format the device after "", so Probe returns
// "" only if it could read the places of all signatures. Errors: ErrContent if the
// device holds anything but a single file system.
func Probe(ctx context.Context, device string) (string, error) {
	out, err := run(ctx, "blkid", "-p", "-o", "export", device)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return parseProbe(device, out)
	case !errors.As(err, &exit) || ctx.Err() != nil:
		return "", fmt.Errorf("probe %s: %w", device, err)
	case exit.ExitCode() == blkidAmbivalent:
		return "", fmt.Errorf("probe %s: %w: signatures of several kinds", device, ErrContent)
	case exit.ExitCode() != blkidNothing:
		return "", fmt.Errorf("probe %s: %w", device, err)
	}
	// blkid has one exit code for "nothing found" and "could not read".
	if err := readEnds(device); err != nil {
		return "", fmt.Errorf("probe %s: %w", device, err)
	}
	return "", nil
}

// IsSwap reports whether a device has the signature of swap space, in use or not.
func IsSwap(ctx context.Context, device string) (bool, error) {
	_, err := run(ctx, "blkid", "-p", "-n", "swap,swsuspend", device)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == blkidNothing && ctx.Err() == nil:
		return false, readEnds(device) // blkid has the same exit code for "could not read"
	}
	return false, fmt.Errorf("probe %s: %w", device, err)
}

// parseProbe returns the type of the file system from blkid's KEY=value lines.
// Errors: ErrContent.
func parseProbe(device, out string) (string, error) {
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			found[key] = value
		}
	}
	switch {
	case found["USAGE"] == "filesystem" && found["TYPE"] != "" && found["PTTYPE"] == "":
		return found["TYPE"], nil
	case found["PTTYPE"] != "":
		return "", fmt.Errorf("probe %s: %w: a %s partition table", device, ErrContent, found["PTTYPE"])
	default:
		return "", fmt.Errorf("probe %s: %w: type %q, usage %q", device, ErrContent, found["TYPE"], found["USAGE"])
	}
}

// readEnds reads the first and the last MiB of a device, where all signatures lie.
func readEnds(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const span = 1 << 20
	for _, at := range []int64{0, max(0, end-span)} {
		if _, err := io.Copy(io.Discard, io.NewSectionReader(f, at, span)); err != nil {
			return fmt.Errorf("read at byte %d: %w", at, err)
		}
	}
	return nil
}
