package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node"
	"steadfast/node/config"
	"steadfast/node/size"
)

// bundleMax bounds what a bundle has, unpacked, in bytes.
const bundleMax = 1 << 30

// bundleCommand is "steadfast support-bundle".
func (a *app) bundleCommand() *cobra.Command {
	var file, configPath string
	var here bool
	c := &cobra.Command{
		Use: "support-bundle", Short: "Collect what somebody needs who is asked for help, without secrets", Args: exactly(0),
		Long: `Write a .tar.gz with a folder for each member of the cluster that answers: how it is,
its events, its configuration without secrets and comments, what it has logged, its
version, kernel and network, the cluster's inventory, metrics, and what its process
is doing. README.txt in it says what was left out, and why.

No secrets are in it: no CHAP secrets, tokens, private keys, command lines of
machines' kernels; nor anything that is stored. Names and addresses are: look through
it before you give it away.

When no node answers, collect what this computer has: kernel, network, the journal,
and the configuration that --config names.`,
		Example: `  steadfast support-bundle
  steadfast support-bundle --file /tmp/help.tar.gz
  steadfast support-bundle --here --file -`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			now := time.Now()
			b := newBundle(a, now)
			if err := b.collect(ctx, here, configPath); err != nil {
				return err
			}
			name := cmp.Or(file, b.folder+".tar.gz")
			if name == "-" {
				return b.write(a.out)
			}
			if err := b.writeFile(name); err != nil {
				return err
			}
			a.note("what was left out, README.txt in it says; look through it before you give it away\n")
			_, err := fmt.Fprintln(a.out, name)
			return err
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the file to write, or - for standard output (default steadfast-support-TIME.tar.gz)")
	c.Flags().BoolVar(&here, "here", false, "only the node that is asked")
	c.Flags().StringVar(&configPath, "config", config.DefaultPath, "the configuration to collect when no node answers")
	return c
}

// bundle is what was collected.
type bundle struct {
	a      *app
	at     time.Time
	folder string
	names  []string // in their order, each with its member's folder
	data   map[string]*bytes.Buffer
	total  int
	left   []string
}

func newBundle(a *app, now time.Time) *bundle {
	return &bundle{a: a, at: now, folder: "steadfast-support-" + now.Format("20060102-150405"), data: map[string]*bytes.Buffer{}}
}

// collect asks the node, or looks around without one.
func (b *bundle) collect(ctx context.Context, here bool, configPath string) error {
	err := b.fromNode(ctx, here)
	if fault.Is(err, fault.Unreachable) && len(b.names) == 0 {
		b.a.note("%v\ncollecting what this computer has\n", err)
		b.leave("", "all that a node tells: "+err.Error())
		err = b.fromComputer(ctx, configPath)
	}
	if err != nil {
		return err
	}
	slices.Sort(b.names)
	b.page()
	return b.readme()
}

// fromNode collects what the members give.
func (b *bundle) fromNode(ctx context.Context, here bool) error {
	stream, err := b.a.sites().CollectSupport(ctx, &steadfastv1.CollectSupportRequest{OnlyHere: here})
	if err != nil {
		return b.a.answer(err)
	}
	defer stream.Close()
	files, sizes := map[string]int{}, map[string]int{}
	for stream.Receive() {
		m := stream.Msg()
		switch {
		case m.File != "":
			fresh, err := b.add(cmp.Or(m.Member, "node"), m.File, m.Data)
			if err != nil {
				return err
			}
			if fresh {
				files[m.Member]++
			}
			sizes[m.Member] += len(m.Data)
		case m.LeftOut != "":
			b.leave(m.Member, m.LeftOut)
		default:
			b.a.note("%s: %d files, %s\n", cmp.Or(m.Member, "this node"), files[m.Member], size.Format(int64(sizes[m.Member])))
		}
	}
	return b.a.answer(stream.Err())
}

// fromComputer collects what there is without a node.
func (b *bundle) fromComputer(ctx context.Context, configPath string) error {
	cfg, err := config.Load(configPath)
	if err != nil {
		// Its text is the file's in part.
		b.leave("", configPath+": it cannot be read as a configuration, and defaults were taken; name the right one with --config")
		cfg = config.Default()
	}
	files, left := node.SupportStopped(ctx, cfg)
	for _, f := range files {
		if _, err := b.add("computer", f.Name, f.Data); err != nil {
			return err
		}
	}
	for _, why := range left {
		b.leave("", why)
	}
	b.a.note("this computer: %d files, %s\n", len(files), size.Format(int64(b.total)))
	return nil
}

// add adds a part of a file, and tells whether it is the first one.
func (b *bundle) add(member, file string, part []byte) (fresh bool, err error) {
	if !fs.ValidPath(member) || !fs.ValidPath(file) || strings.Contains(member, "/") {
		return false, fault.New(fault.Invalid, "the node has sent a file %q of %q", file, member)
	}
	if b.total += len(part); b.total > bundleMax {
		return false, fault.New(fault.Limit, "the bundle has more than %s; give \"steadfast support-bundle --here\" on each member", size.Format(bundleMax))
	}
	name := path.Join(member, file)
	if b.data[name] == nil {
		fresh = true
		b.names, b.data[name] = append(b.names, name), &bytes.Buffer{}
	}
	_, err = b.data[name].Write(part)
	return fresh, err
}

// leave takes in that something is not there.
func (b *bundle) leave(member, why string) {
	if member != "" {
		why = member + ": " + why
	}
	b.left = append(b.left, why)
}

// page adds the site as people read it, as the first member saw it that told of it.
func (b *bundle) page() {
	for _, name := range b.names {
		if path.Base(name) != "site.json" {
			continue
		}
		var site steadfastv1.Site
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b.data[name].Bytes(), &site); err != nil || len(site.Members) == 0 {
			b.leave("", "status.txt: "+name+" cannot be read")
			return
		}
		b.names = append([]string{"status.txt"}, b.names...)
		b.data["status.txt"] = bytes.NewBufferString(siteText(&site))
		return
	}
}

// readme adds what people read first.
func (b *bundle) readme() error {
	var text strings.Builder
	fmt.Fprintf(&text, "Collected by \"steadfast support-bundle\" of version %s at %s.\n\n", version, b.at.UTC().Format(time.RFC3339))
	text.WriteString("status.txt     the site on a page, and what was not redundant\n" +
		"MEMBER/        a folder for each member that answered:\n" +
		"  about.json, site.json, events.json, config.toml    what it is, what it sees, what happened, how it is configured\n" +
		"  log.txt, journal.txt                               the newest of this life's log; of earlier ones as well\n" +
		"  metrics.txt, goroutines.txt                        its metrics; what the process is doing\n" +
		"  volumes.json and others                            what its lists show\n" +
		"  system/, files.txt                                 its computer; names and sizes of its files\n\n" +
		"Left out:\n")
	left := slices.Clone(b.left)
	slices.Sort(left)
	for _, why := range slices.Compact(left) {
		fmt.Fprintf(&text, "- %s\n", strings.ReplaceAll(why, "\n", "; "))
	}
	b.names = append([]string{"README.txt"}, b.names...)
	b.data["README.txt"] = bytes.NewBufferString(text.String())
	return nil
}

// writeFile writes the bundle to a file that was not there, for its owner alone. It is whole or it
// is not there.
func (b *bundle) writeFile(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Exists, "%s is there already; name another file with --file", name)
	case err != nil:
		return fault.Wrap(fault.Denied, err, "cannot write the bundle; name a file in another folder with --file")
	}
	if err := errors.Join(b.write(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(fault.Wrap(fault.Full, err, "cannot write the bundle"), os.Remove(filepath.Clean(name)))
	}
	return nil
}

// write writes the bundle.
func (b *bundle) write(to io.Writer) error {
	zip := gzip.NewWriter(to)
	out := tar.NewWriter(zip)
	for _, name := range b.names {
		data := b.data[name].Bytes()
		head := &tar.Header{Name: path.Join(b.folder, name), Mode: 0o600, Size: int64(len(data)), ModTime: b.at, Typeflag: tar.TypeReg}
		if err := out.WriteHeader(head); err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), zip.Close())
}
