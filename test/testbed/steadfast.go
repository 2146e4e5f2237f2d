package testbed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// binary is where make builds the node, seen from the repository's root, in
// which all harnesses run. STEADFAST_BIN names another one.
const binary = "bin/steadfast"

// poolSlack is what a pool file is made larger than its volumes by: what a
// log needs to be cleaned without haste.
const poolSlack = 2

// steadfast is a node of this tree, set up only through its command line: the
// harnesses see what an admin sees.
type steadfast struct {
	cfg    Config
	bin    string
	log    *os.File
	cgroup *Cgroup
	proc   *process
}

func newSteadfast(ctx context.Context, cfg Config) (Server, error) {
	s := &steadfast{cfg: cfg, bin: binary}
	if other := os.Getenv("STEADFAST_BIN"); other != "" {
		s.bin = other
	}
	var err error
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.bin); err != nil {
		return nil, fmt.Errorf("no node to start (make build): %w", err)
	}
	if s.log, err = openLog(&s.cfg); err != nil {
		return nil, err
	}
	if cfg.MemoryBytes > 0 {
		if s.cgroup, err = NewCgroup("steadfast", cfg.MemoryBytes); err != nil {
			return nil, err
		}
	}
	if err = os.WriteFile(s.path("steadfast.toml"), []byte(s.settings()), 0o600); err == nil {
		err = s.Start(ctx)
	}
	if err == nil {
		err = s.setUp(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *steadfast) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// settings is the node's configuration file.
func (s *steadfast) settings() string {
	var b strings.Builder
	fmt.Fprintf(&b, "data_dir = %q\nsocket = %q\n", s.path("data"), s.socket())
	if s.cfg.CacheBytes > 0 {
		fmt.Fprintf(&b, "cache_size = \"%dM\"\n", s.cfg.CacheBytes>>20)
	}
	for _, p := range s.cfg.Portals {
		fmt.Fprintf(&b, "\n[[portal]]\naddress = %q\n", p)
	}
	return b.String()
}

// socket is the API's. A Unix socket's path holds 108 bytes at most: Dir is
// expected to be short.
func (s *steadfast) socket() string { return s.path("api.sock") }

// setUp makes the pool, the volumes and who may use them.
func (s *steadfast) setUp(ctx context.Context) error {
	size := int64(1 << 30)
	for _, v := range s.cfg.Volumes {
		size += poolSlack * v.Size
	}
	if err := s.cli(ctx, nil, "pool", "create", "pool", s.path("pool.img"), "--size", strconv.FormatInt(size, 10)); err != nil {
		return err
	}
	if err := s.cli(ctx, nil, "target", "create", Target); err != nil {
		return err
	}
	for _, i := range s.cfg.Initiators {
		if err := s.admit(ctx, i); err != nil {
			return err
		}
	}
	for _, v := range s.cfg.Volumes {
		args := []string{"volume", "create", v.Name, "--size", strconv.FormatInt(v.Size, 10)}
		if v.WriteCache {
			args = append(args, "--write-cache=on")
		}
		if v.ReadOnly {
			args = append(args, "--read-only")
		}
		if err := s.cli(ctx, nil, args...); err != nil {
			return err
		}
		for _, i := range s.cfg.Initiators {
			err := s.cli(ctx, nil, "volume", "map", v.Name, "--initiator", i.Name, "--target", Target, "--lun", strconv.Itoa(v.LUN))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// admit tells the node of an initiator; secrets go by file, never by argument.
func (s *steadfast) admit(ctx context.Context, i Initiator) error {
	args := []string{"initiator", "add", i.Name}
	secret := func(flag, name, value string) error {
		file := s.path(name)
		args = append(args, flag, file)
		return os.WriteFile(file, []byte(value+"\n"), 0o600)
	}
	if i.User != "" {
		args = append(args, "--chap-user", i.User)
		if err := secret("--chap-secret-file", "secret-in", i.Secret); err != nil {
			return err
		}
	}
	if i.MutualUser != "" {
		args = append(args, "--mutual-user", i.MutualUser)
		if err := secret("--mutual-secret-file", "secret-out", i.MutualSecret); err != nil {
			return err
		}
	}
	return s.cli(ctx, nil, args...)
}

// cli runs the node's own command line against it.
func (s *steadfast) cli(ctx context.Context, out *string, args ...string) error {
	text, err := run(ctx, append([]string{s.bin, "--socket", s.socket()}, args...)...)
	if out != nil {
		*out = text
	}
	return err
}

func (s *steadfast) Name() string { return "steadfast" }

func (s *steadfast) PID() int {
	if s.proc == nil {
		return 0
	}
	return s.proc.cmd.Process.Pid
}

func (s *steadfast) URL(portal, lun int) string { return url(s.cfg.Portals[portal], lun) }

func (s *steadfast) Start(ctx context.Context) error {
	var err error
	s.proc, err = start(s.log, s.cgroup, s.bin, "node", "--config", s.path("steadfast.toml"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = s.proc.await(ctx, func() error {
		for _, p := range s.cfg.Portals {
			if err := dial(p); err != nil {
				return err
			}
		}
		return s.cli(ctx, nil, "status")
	})
	if err != nil {
		return errors.Join(fmt.Errorf("the node: %w", err), s.Kill())
	}
	return nil
}

func (s *steadfast) Stop() error {
	err := s.proc.end(syscall.SIGTERM, 40*time.Second)
	s.proc = nil
	return err
}

func (s *steadfast) Kill() error {
	err := s.proc.end(syscall.SIGKILL, 10*time.Second)
	s.proc = nil
	return err
}

func (s *steadfast) Close() error {
	err := s.Kill()
	if s.cgroup != nil {
		err = errors.Join(err, s.cgroup.Close())
	}
	return err
}

// Metric reads one unlabelled metric of the node.
func (s *steadfast) Metric(ctx context.Context, name string) (float64, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _, _ = io.Copy(io.Discard, resp.Body); _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("metrics: %s", resp.Status)
	}
	for scan := bufio.NewScanner(resp.Body); scan.Scan(); {
		if value, ok := strings.CutPrefix(scan.Text(), name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("metrics: no %s", name)
}

// Meter is a server that tells of itself.
type Meter interface {
	// Metric returns an unlabelled metric by its Prometheus name.
	Metric(ctx context.Context, name string) (float64, error)
}

var _ Meter = (*steadfast)(nil)
