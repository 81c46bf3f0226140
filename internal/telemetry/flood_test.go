package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// run serves until the test ends.
func run(t *testing.T, s Server) (address string) {
	t.Helper()
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return l.Addr().String()
}

// open connects so many times and says something, if anything, each time.
func open(t *testing.T, address string, count int, say string) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for range count {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		_, _ = io.WriteString(c, say) // it may be closed already
		conns = append(conns, c)
	}
	return conns
}

func get(t *testing.T, address, path string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return ""
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s: %d, %v", path, r.StatusCode, err)
	}
	return string(text)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// large is a registry whose figures fill a socket's buffers soon.
func large(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := NewRegistry()
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "large", Help: "Large."}, []string{"n"})
	for i := range 2000 {
		v.WithLabelValues(fmt.Sprint(strings.Repeat("x", 100), i)).Set(1)
	}
	r.MustRegister(v)
	return r
}

// Somebody opens a thousand connections and says nothing, half of a header, or
// asks again and again without reading: probes and scrapes are answered, and
// memory stays what it is.
func TestFlood(t *testing.T) {
	ok := func(context.Context) error { return nil }
	probes, metrics := run(t, Server{Healthy: ok, Ready: ok}), run(t, Server{Metrics: large(t)})
	get(t, metrics, "/metrics")
	for what, say := range map[string]string{
		"idle":             "",
		"half of a header": "GET /metrics HTTP/1.1\r\nHost: x\r\n",
		"not reading":      strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n", 50),
	} {
		before := heap()
		for _, address := range []string{probes, metrics} {
			conns := open(t, address, 1000, say)
			get(t, probes, "/healthz")
			get(t, probes, "/readyz")
			if text := get(t, metrics, "/metrics"); !strings.Contains(text, "go_goroutines") {
				t.Errorf("%s: no figures in %d bytes", what, len(text))
			}
			if n := runtime.NumGoroutine(); n > 3*2*maxConnections {
				t.Errorf("%s: %d goroutines", what, n)
			}
			if after := heap(); after > before+40<<20 {
				t.Errorf("%s: %d MiB more", what, (after-before)>>20)
			}
			// The oldest was closed for the others.
			if err := conns[0].SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conns[0]); err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s: %v", what, err)
			}
			for _, c := range conns {
				c.Close()
			}
		}
	}
}

// A header has a size, and who is slow with it is not waited for.
func TestSlowHeader(t *testing.T) {
	address := run(t, Server{Metrics: NewRegistry()})
	slow := open(t, address, 1, "GET /metrics HTTP/1.1\r\n")[0]
	long := open(t, address, 1, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 64<<10))[0]
	answer := make([]byte, 12)
	if _, err := io.ReadFull(long, answer); err == nil && string(answer) != "HTTP/1.1 431" {
		t.Errorf("a long header: %s", answer)
	}
	began := time.Now()
	if err := slow.SetReadDeadline(began.Add(4 * readLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, slow); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("still open after %v: %v", time.Since(began), err)
	}
}

// Callers that ask at the same time get the same answer, which is made once.
func TestShared(t *testing.T) {
	var made atomic.Int32
	entered, release := make(chan bool, 100), make(chan bool)
	one := &shared[int32]{do: func(context.Context) (int32, error) {
		entered <- true
		<-release
		return made.Add(1), nil
	}}
	var all sync.WaitGroup
	ask := func() {
		if _, err := one.get(t.Context()); err != nil {
			t.Error(err)
		}
	}
	all.Go(ask)
	<-entered
	for range 50 {
		all.Go(ask)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := one.get(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("who does not wait any more: %v", err)
	}
	time.Sleep(50 * time.Millisecond) // for the fifty to ask: one that is late has it made again
	close(release)
	all.Wait()
	if n := made.Load(); n > 10 {
		t.Errorf("made %d times", n)
	}
	before := made.Load()
	if got, err := one.get(t.Context()); err != nil || got != before+1 {
		t.Errorf("who asks later gets an old result: %d, %v", got, err)
	}
}

// Figures are gathered once a second, whoever asks for them.
func TestScrapesShareFigures(t *testing.T) {
	var gathers atomic.Int32
	r := NewRegistry()
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "x"}, func() float64 { gathers.Add(1); return 1 }))
	address := run(t, Server{Metrics: r})
	began := time.Now()
	for range 20 {
		get(t, address, "/metrics")
	}
	if n, most := gathers.Load(), int32(time.Since(began)/gatherEvery)+1; n > most {
		t.Errorf("gathered %d times, at most %d are due", n, most)
	}
}
