package fio

import (
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const printed = `fio: a note
{
  "jobs" : [ {
    "error" : 0,
    "read" : { "io_bytes" : 0, "bw_bytes" : 0, "total_ios" : 0, "clat_ns" : { "max" : 0 } },
    "write" : { "io_bytes" : 2097152, "bw_bytes" : 45590260, "total_ios" : 512,
      "clat_ns" : { "max" : 4464971, "percentile" : { "50.000000" : 921600, "99.000000" : 4423680 } } }
  } ]
}`

// TestFio_parse: the figures are read from fio's JSON, and an incomplete or failed run
// is an error.
func TestFio_parse(t *testing.T) {
	got, err := parse([]byte(printed))
	want := Result{Bytes: 2 * size.MiB, Throughput: 45590260, P99: 4423680, Max: 4464971, Requests: 512}
	if err != nil || got != want {
		t.Errorf("parse: %+v, %v; want %+v", got, err, want)
	}
	for what, text := range map[string]string{
		"no JSON":    "fio: bad option",
		"half":       printed[:200],
		"an error":   strings.Replace(printed, `"error" : 0`, `"error" : 5`, 1),
		"no job":     `{"jobs": []}`,
		"no request": strings.Replace(printed, `"total_ios" : 512`, `"total_ios" : 0`, 1),
	} {
		if got, err := parse([]byte(text)); err == nil {
			t.Errorf("%s: %+v, want an error", what, got)
		}
	}
}

// TestFio_arguments: a load becomes the arguments of fio.
func TestFio_arguments(t *testing.T) {
	l := Load{Path: "/dev/x", Pattern: "randwrite", Block: 64 * size.KiB, Depth: 16, Offset: size.MiB, Span: 32 * size.MiB,
		Amount: size.MiB, Time: 1500 * time.Millisecond, Flush: true}
	got := strings.Join(l.arguments(), " ")
	for _, want := range []string{"--bs=65536", "--offset=1048576", "--size=33554432", "--io_size=1048576", "--runtime=1500ms", "--end_fsync=1", "--direct=1"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not among %s", want, got)
		}
	}
}
