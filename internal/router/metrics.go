package router

import "github.com/prometheus/client_golang/prometheus"

// metrics of the router; a prometheus.Collector.
type metrics struct {
	fleet        *fleet
	partialLists prometheus.Counter
	nodes        *prometheus.Desc
}

func newMetrics(f *fleet) *metrics {
	return &metrics{
		fleet: f,
		partialLists: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "csi_dmsnap_controller_partial_lists_total",
			Help: "Nodes that were left out of an unfiltered list because they did not answer.",
		}),
		nodes: prometheus.NewDesc("csi_dmsnap_controller_nodes",
			"Nodes that the controller knows, by whether their driver is ready.", []string{"ready"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(c chan<- *prometheus.Desc) {
	m.partialLists.Describe(c)
	c <- m.nodes
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(c chan<- prometheus.Metric) {
	m.partialLists.Collect(c)
	all, ready := len(m.fleet.all()), len(m.fleet.ready())
	c <- prometheus.MustNewConstMetric(m.nodes, prometheus.GaugeValue, float64(ready), "true")
	c <- prometheus.MustNewConstMetric(m.nodes, prometheus.GaugeValue, float64(all-ready), "false")
}
