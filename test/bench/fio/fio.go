// Package fio runs the load generator fio and reads its JSON.
package fio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Load is one job of fio on one device or file, past the page cache.
type Load struct {
	Path    string
	Pattern string     // fio's rw: randwrite, randread, randrw, write:60k, …
	Block   size.Bytes // of each request
	Depth   int        // requests in flight
	Offset  size.Bytes // where the part of Path begins that is used
	Span    size.Bytes // how long that part is
	Amount  size.Bytes // bytes to transfer in all; Span if 0
	Time    time.Duration
	Flush   bool // ends with a flush, which counts
}

// Result is what fio measured. Reads and writes are taken together.
type Result struct {
	Bytes      size.Bytes    // transferred
	Throughput float64       // bytes per second
	P99        time.Duration // latency, from submission to completion; the worse of reads and writes
	Max        time.Duration
	Requests   uint64
}

func (l Load) arguments() []string {
	args := []string{
		"--name=load", "--output-format=json", "--ioengine=libaio", "--direct=1", "--thread", "--group_reporting",
		"--filename=" + l.Path, "--rw=" + l.Pattern, bytesArg("bs", l.Block), "--iodepth=" + strconv.Itoa(l.Depth),
		bytesArg("offset", l.Offset), bytesArg("size", l.Span),
		"--randrepeat=0", "--refill_buffers",
	}
	if l.Amount != 0 {
		args = append(args, bytesArg("io_size", l.Amount))
	}
	if l.Time != 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", l.Time.Milliseconds()))
	}
	if l.Flush {
		args = append(args, "--end_fsync=1")
	}
	return args
}

func bytesArg(name string, n size.Bytes) string { return fmt.Sprintf("--%s=%d", name, uint64(n)) }

// Run runs the load to its end.
func (l Load) Run() (Result, error) {
	r, err := l.Start()
	if err != nil {
		return Result{}, err
	}
	return r.wait()
}

// Running is a load that runs.
type Running struct {
	cmd         *exec.Cmd
	out, errors bytes.Buffer
}

// Start begins the load.
func (l Load) Start() (*Running, error) {
	r := &Running{cmd: exec.Command("fio", l.arguments()...)}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errors
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("fio (the Debian package fio, see hack/deps.sh): %w", err)
	}
	return r, nil
}

// Stop ends the load before its time and returns what it measured until then.
func (r *Running) Stop() (Result, error) {
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return Result{}, fmt.Errorf("ending fio: %w", err)
	}
	return r.wait()
}

func (r *Running) wait() (Result, error) {
	if err := r.cmd.Wait(); err != nil {
		// Interrupted, it says 128 and has reported all the same.
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 128 {
			return Result{}, fmt.Errorf("%v: %w\n%s%s", r.cmd.Args, err, r.errors.Bytes(), r.out.Bytes())
		}
	}
	res, err := parse(r.out.Bytes())
	if err != nil {
		return Result{}, fmt.Errorf("%v: %w\n%s%s", r.cmd.Args, err, r.errors.Bytes(), r.out.Bytes())
	}
	return res, nil
}

// report is the part of fio's JSON that is used.
type report struct {
	Jobs []struct {
		Error       int       `json:"error"`
		Read, Write direction // also what end_fsync takes is in the runtime
	} `json:"jobs"`
}

type direction struct {
	Bytes    uint64  `json:"io_bytes"`
	Rate     float64 `json:"bw_bytes"`
	Requests uint64  `json:"total_ios"`
	Latency  struct {
		Max        int64            `json:"max"`
		Percentile map[string]int64 `json:"percentile"`
	} `json:"clat_ns"`
}

// parse reads fio's output. Notes that fio makes precede the JSON.
func parse(out []byte) (Result, error) {
	at := bytes.IndexByte(out, '{')
	if at < 0 {
		return Result{}, errors.New("fio printed no JSON")
	}
	var r report
	if err := json.Unmarshal(out[at:], &r); err != nil {
		return Result{}, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(r.Jobs) != 1 {
		return Result{}, fmt.Errorf("fio reports %d jobs, not one", len(r.Jobs))
	}
	j := r.Jobs[0]
	if j.Error != 0 {
		return Result{}, fmt.Errorf("fio met an I/O error: %w", syscall.Errno(j.Error))
	}
	var total Result
	for _, d := range []direction{j.Read, j.Write} {
		total.Bytes += size.Bytes(d.Bytes)
		total.Throughput += d.Rate
		total.Requests += d.Requests
		total.Max = max(total.Max, time.Duration(d.Latency.Max))
		total.P99 = max(total.P99, time.Duration(d.Latency.Percentile["99.000000"]))
	}
	if total.Requests == 0 {
		return Result{}, errors.New("fio made no request")
	}
	return total, nil
}
