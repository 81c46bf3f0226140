package driver

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// gauge is a metric that is read from the usage of each pool.
type gauge struct {
	*prometheus.Desc
	value func(pool.Usage) float64
}

func poolGauge(name, help string, value func(pool.Usage) float64) gauge {
	return gauge{prometheus.NewDesc("csi_dmsnap_pool_"+name, help, []string{"pool"}, nil), value}
}

var (
	poolOpen = prometheus.NewDesc("csi_dmsnap_pool_open", "1 if the pool is open, 0 if it cannot be used.", []string{"pool"}, nil)
	gauges   = []gauge{
		poolGauge("capacity_bytes", "All extents of the pool.", func(u pool.Usage) float64 { return float64(u.Total) }),
		poolGauge("free_bytes", "Room for new volumes: wiped free extents less the reserve for snapshots.", func(u pool.Usage) float64 { return float64(u.Free) }),
		poolGauge("volume_bytes", "Extents of volumes, including deleted volumes that still have snapshots.", func(u pool.Usage) float64 { return float64(u.Blocks) }),
		poolGauge("layer_bytes", "Extents of the stores of snapshots, and of volumes that are being hydrated.", func(u pool.Usage) float64 { return float64(u.Stores) }),
		poolGauge("layer_used_bytes", "The part of layer_bytes that has content.", func(u pool.Usage) float64 { return float64(u.StoresUsed) }),
		poolGauge("volumes_hydrating", "Restored volumes that read through their snapshot.", func(u pool.Usage) float64 { return float64(u.Hydrating) }),
		poolGauge("hydrate_bytes", "The part of restored volumes that is not copied yet.", func(u pool.Usage) float64 { return float64(u.ToHydrate) }),
		poolGauge("trash_bytes", "Extents of deleted volumes and snapshots that are not wiped yet.", func(u pool.Usage) float64 { return float64(u.Trash) }),
		poolGauge("unwiped_bytes", "Free extents that are not known to hold zeroes.", func(u pool.Usage) float64 { return float64(u.Unwiped) }),
		poolGauge("metadata_bytes", "Capacity of the group's smallest metadata area.", func(u pool.Usage) float64 { return float64(u.Metadata.Size) }),
		poolGauge("metadata_used_bytes", "The part of metadata_bytes that is in use.", func(u pool.Usage) float64 { return float64(u.Metadata.Used) }),
		poolGauge("metadata_reserved_bytes", "The part of metadata_bytes that new volumes and snapshots cannot use.", func(u pool.Usage) float64 { return float64(u.Metadata.Reserved) }),
		poolGauge("volumes", "Volumes.", func(u pool.Usage) float64 { return float64(u.Volumes) }),
		poolGauge("snapshots", "Snapshots, including lost snapshots.", func(u pool.Usage) float64 { return float64(u.Snapshots) }),
		poolGauge("snapshots_lost", "Snapshots whose content is gone.", func(u pool.Usage) float64 { return float64(u.Lost) }),
		poolGauge("layers", "Stores of snapshots, including deleted snapshots that others read through.", func(u pool.Usage) float64 { return float64(u.Layers) }),
	}
	modulePresent = prometheus.NewDesc("csi_dmsnap_kernel_module_present",
		"1 if the kernel has a part that the pool needs, 0 if the part is missing and its module could not be loaded.", []string{"pool", "module", "part"}, nil)
	windows = histogram{prometheus.NewDesc("csi_dmsnap_cut_window_seconds",
		"Time for which a cut held a volume in use: the total (part all) and its parts.", []string{"pool", "part"}, nil)}
	brakes = histogram{prometheus.NewDesc("csi_dmsnap_writers_held_seconds",
		"Time for which writers were held until the store of a snapshot had grown.", []string{"pool", "part"}, nil)}
)

// histogram is a metric that is read from the timings of each pool, in seconds.
type histogram struct{ *prometheus.Desc }

func (h histogram) collect(to chan<- prometheus.Metric, name string, timings []pool.Timing) {
	for _, t := range timings {
		part := t.Part
		if part == "" {
			part = "all"
		}
		below := make(map[float64]uint64, len(t.Below))
		for bound, n := range t.Below {
			below[bound.Seconds()] = n
		}
		to <- prometheus.MustNewConstHistogram(h.Desc, t.Count, t.Sum.Seconds(), below, name, part)
	}
}

type metrics struct{ pools *pool.Set }

// Metrics returns a collector of the pools' metrics. The collector may be used
// concurrently.
func (d *Driver) Metrics() prometheus.Collector { return metrics{d.pools} }

// Describe sends the descriptions of all metrics.
func (m metrics) Describe(to chan<- *prometheus.Desc) {
	to <- poolOpen
	to <- modulePresent
	to <- windows.Desc
	to <- brakes.Desc
	for _, f := range gauges {
		to <- f.Desc
	}
}

// Collect sends the metrics of all pools. A pool that is not open has only the
// metric csi_dmsnap_pool_open.
func (m metrics) Collect(to chan<- prometheus.Metric) {
	for _, name := range m.pools.Names() {
		var u pool.Usage
		p, err := m.pools.Pool(name)
		if err == nil {
			windows.collect(to, name, p.Windows())
			brakes.collect(to, name, p.Brakes())
			if modules, err := p.Modules(); err == nil {
				for _, x := range modules {
					present := 1.0
					if x.Missing {
						present = 0
					}
					to <- prometheus.MustNewConstMetric(modulePresent, prometheus.GaugeValue, present, name, x.Name, x.Part)
				}
			}
			u, err = p.Usage()
		}
		open := 1.0
		if err != nil {
			open = 0
		}
		to <- prometheus.MustNewConstMetric(poolOpen, prometheus.GaugeValue, open, name)
		if err != nil {
			continue
		}
		for _, f := range gauges {
			to <- prometheus.MustNewConstMetric(f.Desc, prometheus.GaugeValue, f.value(u), name)
		}
	}
}
