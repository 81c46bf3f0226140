// Package fio runs the load generator fio and parses its JSON.
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

// Load is one job of fio on one device or file. It bypasses the page cache.
type Load struct {
	Path    string
	Pattern string     // fio's rw: randwrite, randread, randrw, write:60k, …
	Block   size.Bytes // of each request
	Depth   int        // requests in flight
	Offset  size.Bytes // the beginning of the used part of Path
	Span    size.Bytes // the length of the used part
	Amount  size.Bytes // the total to transfer; Span if 0
	Time    time.Duration
	Flush   bool // end with a flush, whose time counts
}

// Result is what fio measured, for reads and writes together.
type Result struct {
	Bytes      size.Bytes    // transferred
	Throughput float64       // bytes per second
	P99        time.Duration // latency from submission to completion; the worse of reads and writes
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

// Run runs the load until it ends.
func (l Load) Run() (Result, error) {
	r, err := l.Start()
	if err != nil {
		return Result{}, err
	}
	return r.wait()
}

// Running is a running load.
type Running struct {
	cmd         *exec.Cmd
	out, errors bytes.Buffer
}

// Start starts the load.
func (l Load) Start() (*Running, error) {
	r := &Running{cmd: exec.Command("fio", l.arguments()...)}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errors
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting fio: %w; install the Debian package fio (hack/deps.sh)", err)
	}
	return r, nil
}

// Stop ends the load early and returns what it has measured.
func (r *Running) Stop() (Result, error) {
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return Result{}, fmt.Errorf("ending fio: %w", err)
	}
	return r.wait()
}

func (r *Running) wait() (Result, error) {
	if err := r.cmd.Wait(); err != nil {
		// If it is interrupted, fio exits with code 128, but it still reports.
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

// report is the used part of fio's JSON.
type report struct {
	Jobs []struct {
		Error       int       `json:"error"`
		Read, Write direction // the runtime includes end_fsync
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

// parse parses fio's output. Notes of fio may precede the JSON.
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
		return Result{}, fmt.Errorf("fio reports %d jobs, want one", len(r.Jobs))
	}
	j := r.Jobs[0]
	if j.Error != 0 {
		return Result{}, fmt.Errorf("fio had an I/O error: %w", syscall.Errno(j.Error))
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
