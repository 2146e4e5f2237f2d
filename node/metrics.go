package node

import (
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"steadfast/san/store"
)

// metricsHandler serves the node's metrics and the Go runtime's.
// docs/OPERATING.md lists them.
func (n *Node) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(n),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(n.log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError,
	})
}

// metric is one family of values.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// collector reads the node's state when metrics are asked for: nothing is
// counted twice, and the data path pays nothing.
type collector struct {
	n *Node
	m map[string]metric
}

// family is a metric: name without "steadfast_", type, labels, help.
type family struct {
	name   string
	kind   prometheus.ValueType
	labels []string
	help   string
}

// MetricNames returns the names of all metrics that a node may have, for what
// is written about them: the manual, and rules of alerts.
func MetricNames() (names []string) {
	for _, f := range families() {
		names = append(names, "steadfast_"+f.name)
	}
	return names
}

// families are all metrics. Names keep Prometheus's rules: base units, _total
// for counters.
func families() []family {
	return slices.Concat(nodeFamilies(), clusterFamilies(), siteFamilies(), hostFamilies())
}

func nodeFamilies() []family {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	pool, drv, vol := []string{"pool"}, []string{"pool", "drive"}, []string{"pool", "volume"}
	return []family{
		{"info", gauge, []string{"version", "node_id"}, "Always 1; its labels identify the node."},
		{"serving", gauge, nil, "1 while the portals are open."},
		{"start_time_seconds", gauge, nil, "When the node started, since the Unix epoch."},
		{"clock_seconds", gauge, nil, "The node's clock, since the Unix epoch."},
		{"events_total", counter, []string{"severity"}, "Events since the node started."},
		{"cluster_member", gauge, nil, "1 while the node takes part in a cluster."},
		{"cluster_hindered", gauge, nil, "1 while something keeps it from taking part in its cluster."},
		{"sessions", gauge, nil, "iSCSI sessions, discovery included."},
		{"logins_in_progress", gauge, nil, "Connections in login."},
		{"logins_failed_total", counter, nil, "Logins refused."},
		{"connections_refused_total", counter, nil, "Connections closed because too many were in login."},
		{"transfer_buffers_bytes", gauge, nil, "Memory that commands in progress hold for data."},
		{"commands_waiting", gauge, nil, "Commands that wait for memory."},
		{"pool_open", gauge, pool, "1 while the pool is open."},
		{"pool_online", gauge, pool, "1 while the pool is open and takes reads and writes."},
		{"pool_capacity_bytes", gauge, pool, "What volumes can fill."},
		{"pool_used_bytes", gauge, pool, "What live data and the map take up of the capacity."},
		{"pool_data_bytes", gauge, pool, "Live data."},
		{"pool_metadata_bytes", gauge, pool, "The map."},
		{"pool_provisioned_bytes", gauge, pool, "Sum of the volumes' sizes."},
		{"pool_shared_bytes", gauge, pool, "Data that more than one volume or snapshot reads."},
		{"pool_reclaimable_bytes", gauge, pool, "Space on its way back to being free."},
		{"pool_volumes", gauge, pool, "Volumes."},
		{"pool_snapshots", gauge, pool, "Snapshots."},
		{"pool_corrupt_blocks_total", counter, pool, "Checksum mismatches since the pool was opened."},
		{"pool_user_written_bytes_total", counter, pool, "Bytes written by initiators since the pool was opened."},
		{"pool_drive_written_bytes_total", counter, pool, "Bytes written to drives since the pool was opened."},
		{"pool_cache_hits_total", counter, pool, "Cache hits since the pool was opened."},
		{"pool_cache_misses_total", counter, pool, "Cache misses since the pool was opened."},
		{"pool_commit_sequence", gauge, pool, "The last durable log sequence number."},
		{"pool_scrub_running", gauge, pool, "1 while a scrub runs."},
		{"pool_scrub_done_bytes", gauge, pool, "What the running or last scrub has verified."},
		{"pool_scrub_total_bytes", gauge, pool, "What the running or last scrub has to verify."},
		{"drive_online", gauge, drv, "1 while the drive is in use and healthy."},
		{"drive_size_bytes", gauge, drv, "The drive's size."},
		{"drive_used_bytes", gauge, drv, "Live data and map on the drive."},
		{"volume_size_bytes", gauge, vol, "The volume's size."},
		{"volume_referenced_bytes", gauge, vol, "What the volume's content takes up, shared or not."},
		{"volume_exclusive_bytes", gauge, vol, "What deleting the volume would give back."},
		{"volume_corrupt_blocks_total", counter, vol, "Checksum mismatches since the pool was opened."},
		{"volume_reads_total", counter, vol, "Read commands since the volume was mapped."},
		{"volume_writes_total", counter, vol, "Write commands since the volume was mapped."},
		{"volume_read_bytes_total", counter, vol, "Bytes read since the volume was mapped."},
		{"volume_written_bytes_total", counter, vol, "Bytes written since the volume was mapped."},
		{"volume_read_seconds_total", counter, vol, "Sum of the times that reads took."},
		{"volume_write_seconds_total", counter, vol, "Sum of the times that writes took."},
		{"volume_errors_total", counter, vol, "Commands that ended in CHECK CONDITION, but for unit attentions and miscompares."},
	}
}

func newCollector(n *Node) *collector {
	c := &collector{n: n, m: map[string]metric{}}
	for _, f := range families() {
		c.m[f.name] = metric{prometheus.NewDesc("steadfast_"+f.name, f.help, f.labels, nil), f.kind}
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, name := range slices.Sorted(maps.Keys(c.m)) {
		out <- c.m[name].desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	n := c.n
	put := func(name string, value float64, labels ...string) {
		m := c.m[name]
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
	}
	put("info", 1, n.version, n.state.NodeID())
	put("serving", flag(n.getPhase() == "serving"))
	put("start_time_seconds", float64(n.started.UnixMilli())/1000)
	put("clock_seconds", float64(time.Now().UnixMilli())/1000)
	for _, s := range []string{severityInfo, severityWarning, severityError} {
		put("events_total", float64(n.events.countOf(s)), s)
	}
	st := n.targets.Stats()
	put("sessions", float64(st.Sessions))
	put("logins_in_progress", float64(st.HalfOpen))
	put("logins_failed_total", float64(st.FailedLogins))
	put("connections_refused_total", float64(st.Refused))
	put("transfer_buffers_bytes", float64(st.Memory))
	put("commands_waiting", float64(st.Waiting))
	for _, p := range n.allPools() {
		s := p.opened()
		put("pool_open", flag(s != nil), p.name)
		if s != nil {
			collectPool(put, s)
			collectVolumes(put, n.units, s)
		}
	}
	n.collectCluster(put)
}

type putMetric func(name string, value float64, labels ...string)

func collectPool(put putMetric, s *store.Pool) {
	st := s.Status()
	for name, v := range map[string]float64{
		"pool_online":         flag(st.State == "online"),
		"pool_capacity_bytes": float64(st.Capacity), "pool_used_bytes": float64(st.Used),
		"pool_data_bytes": float64(st.Data), "pool_metadata_bytes": float64(st.Metadata),
		"pool_provisioned_bytes": float64(st.Provisioned), "pool_shared_bytes": float64(st.Shared),
		"pool_reclaimable_bytes": float64(st.Reclaimable),
		"pool_volumes":           float64(st.Volumes), "pool_snapshots": float64(st.Snapshots),
		"pool_corrupt_blocks_total":     float64(st.CorruptBlocks),
		"pool_user_written_bytes_total": float64(st.WrittenByUsers), "pool_drive_written_bytes_total": float64(st.WrittenToDrives),
		"pool_cache_hits_total": float64(st.CacheHits), "pool_cache_misses_total": float64(st.CacheMisses),
		"pool_commit_sequence": float64(st.CommitSequence),
	} {
		put(name, v, st.Name)
	}
	for _, d := range st.Drives {
		put("drive_online", flag(d.State == "online"), st.Name, d.Name)
		put("drive_size_bytes", float64(d.Size), st.Name, d.Name)
		put("drive_used_bytes", float64(d.Used), st.Name, d.Name)
	}
	scrub := s.Scrub()
	put("pool_scrub_running", flag(scrub.Running), st.Name)
	put("pool_scrub_done_bytes", float64(scrub.Done), st.Name)
	put("pool_scrub_total_bytes", float64(scrub.Total), st.Name)
}

func collectVolumes(put putMetric, u *units, s *store.Pool) {
	pool := s.Status().Name
	for _, v := range s.Volumes() {
		put("volume_size_bytes", float64(v.Size), pool, v.Name)
		put("volume_referenced_bytes", float64(v.Referenced), pool, v.Name)
		put("volume_exclusive_bytes", float64(v.Exclusive), pool, v.Name)
		put("volume_corrupt_blocks_total", float64(v.CorruptBlocks), pool, v.Name)
		c, ok := u.counters(v.ID)
		if !ok {
			continue
		}
		put("volume_reads_total", float64(c.Reads), pool, v.Name)
		put("volume_writes_total", float64(c.Writes), pool, v.Name)
		put("volume_read_bytes_total", float64(c.ReadBytes), pool, v.Name)
		put("volume_written_bytes_total", float64(c.WrittenBytes), pool, v.Name)
		put("volume_read_seconds_total", float64(c.ReadNanos)/1e9, pool, v.Name)
		put("volume_write_seconds_total", float64(c.WriteNanos)/1e9, pool, v.Name)
		put("volume_errors_total", float64(c.Errors), pool, v.Name)
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
