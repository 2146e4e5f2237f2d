package support

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"steadfast/node/config"
)

// Config writes a configuration, but for what is secret in it: the keys here and no others. Comments
// of the file are not in it.
func Config(c config.Config) File {
	var b strings.Builder
	b.WriteString("# What the member runs with, defaults included; comments and secrets are left out.\n")
	line := func(key string, value any) { fmt.Fprintf(&b, "%s = %v\n", key, value) }
	text := func(key, value string) {
		if value != "" {
			line(key, fmt.Sprintf("%q", value))
		}
	}
	text("data_dir", c.DataDir)
	text("socket", c.Socket)
	text("metrics_address", string(c.Metrics))
	line("cache_size", int64(c.Cache))
	text("drain_timeout", time.Duration(c.Drain).String())
	b.WriteString("[log]\n")
	text("level", strings.ToLower(slog.Level(c.Log.Level).String()))
	text("format", string(c.Log.Format))
	for _, p := range c.Portals {
		b.WriteString("[[portal]]\n")
		text("address", string(p.Address))
		line("group", p.Group)
	}
	b.WriteString("[discovery]\n")
	line("# CHAP is asked for", c.Discovery.User != "")
	b.WriteString("[limits]\n")
	line("sessions", c.Limits.Sessions)
	line("queue_depth", c.Limits.QueueDepth)
	line("memory", int64(c.Limits.Memory))
	b.WriteString("[cluster]\n")
	line("witness", c.Cluster.Witness)
	line("host", c.Cluster.Host)
	text("listen", string(c.Cluster.Listen))
	line("alias_port", c.Cluster.AliasPort)
	line("handed_aliases", c.Cluster.HandedAliases)
	text("box", c.Cluster.Box)
	if c.Cluster.Host {
		b.WriteString("[host]\n")
		line("memory", int64(c.Host.Memory))
		line("cpus", c.Host.CPUs)
		text("box", c.Host.Box)
	}
	for _, n := range c.Networks {
		b.WriteString("[[network]]\n")
		text("name", n.Name)
		text("switch", n.Switch)
		text("bridge", n.Bridge)
		line("user", n.User)
	}
	return File{"config.toml", []byte(b.String())}
}
