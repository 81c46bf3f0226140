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

// Probe returns the type of the file system on a device, or "" if the device
// holds nothing that is known. It returns "" only if the places where
// signatures lie could be read: whoever asks may be about to format.
// Anything but a single file system is ErrContent.
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

// IsSwap tells whether a device has the signature of swap, in use or not.
func IsSwap(ctx context.Context, device string) (bool, error) {
	_, err := run(ctx, "blkid", "-p", "-n", "swap,swsuspend", device)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == blkidNothing && ctx.Err() == nil:
		return false, readEnds(device) // blkid has no other exit code for "could not read"
	}
	return false, fmt.Errorf("probe %s: %w", device, err)
}

// parseProbe reads blkid's KEY=value lines.
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

// readEnds reads the first and the last MiB: every signature that would make
// a device anything but blank lies there.
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
