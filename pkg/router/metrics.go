package router

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// metrics of the router; a prometheus.Collector.
type metrics struct {
	fleet        *fleet
	requests     *prometheus.HistogramVec
	partialLists prometheus.Counter
	nodes        *prometheus.Desc
}

func newMetrics(f *fleet) *metrics {
	return &metrics{
		fleet: f,
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "csi_dmsnap_controller_request_duration_seconds",
			Help:    "CSI requests to the controller, by method and gRPC code.",
			Buckets: []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"method", "code"}),
		partialLists: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "csi_dmsnap_controller_partial_lists_total",
			Help: "Nodes that were left out of an unfiltered list because they did not answer.",
		}),
		nodes: prometheus.NewDesc("csi_dmsnap_controller_nodes",
			"Nodes that the controller knows, by whether their driver is ready.", []string{"ready"}, nil),
	}
}

func (m *metrics) observe(method string, c codes.Code, took time.Duration) {
	m.requests.WithLabelValues(method, c.String()).Observe(took.Seconds())
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	m.requests.Describe(c)
	m.partialLists.Describe(c)
	c <- m.nodes
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	m.requests.Collect(c)
	m.partialLists.Collect(c)
	all, ready := len(m.fleet.all()), len(m.fleet.ready())
	c <- prometheus.MustNewConstMetric(m.nodes, prometheus.GaugeValue, float64(ready), "true")
	c <- prometheus.MustNewConstMetric(m.nodes, prometheus.GaugeValue, float64(all-ready), "false")
}
