package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/fault"
	"steadfast/node/apierror"
	"steadfast/node/config"
)

// baseURL stands in for the socket, which the transport dials whatever it is.
const baseURL = "http://steadfast"

// socketPath returns the socket to talk to.
func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	if s := a.getenv("STEADFAST_SOCKET"); s != "" {
		return s
	}
	return config.DefaultSocket
}

// transport returns a client of the node's socket.
func (a *app) transport() *http.Client {
	path := a.socketPath()
	return &http.Client{Transport: &http.Transport{
		// One call a connection: the program ends after it.
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

func (a *app) options() connect.ClientOption { return connect.WithInterceptors(answers{a}) }

func (a *app) pools() steadfastv1connect.PoolServiceClient {
	return steadfastv1connect.NewPoolServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) drives() steadfastv1connect.DriveServiceClient {
	return steadfastv1connect.NewDriveServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) volumes() steadfastv1connect.VolumeServiceClient {
	return steadfastv1connect.NewVolumeServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) snapshots() steadfastv1connect.SnapshotServiceClient {
	return steadfastv1connect.NewSnapshotServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) targets() steadfastv1connect.TargetServiceClient {
	return steadfastv1connect.NewTargetServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) initiators() steadfastv1connect.InitiatorServiceClient {
	return steadfastv1connect.NewInitiatorServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) sessions() steadfastv1connect.SessionServiceClient {
	return steadfastv1connect.NewSessionServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) node() steadfastv1connect.NodeServiceClient {
	return steadfastv1connect.NewNodeServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) clusters() steadfastv1connect.ClusterServiceClient {
	return steadfastv1connect.NewClusterServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) groups() steadfastv1connect.GroupServiceClient {
	return steadfastv1connect.NewGroupServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) datacenters() steadfastv1connect.DatacenterServiceClient {
	return steadfastv1connect.NewDatacenterServiceClient(a.transport(), baseURL, a.options())
}

func (a *app) sites() steadfastv1connect.SiteServiceClient {
	return steadfastv1connect.NewSiteServiceClient(a.transport(), baseURL, a.options())
}

// answers gives errors of calls their kinds again.
type answers struct{ a *app }

// WrapUnary implements connect.Interceptor.
func (i answers) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, i.a.answer(err)
	}
}

// WrapStreamingClient implements connect.Interceptor; a stream's errors are
// taken from the stream with answer.
func (i answers) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (i answers) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// answer turns a call's error into one of its kind, and says what to do when
// there is no node.
func (a *app) answer(err error) error {
	path := a.socketPath()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fault.New(fault.Unreachable, "no node answers on %s; start one (\"systemctl start steadfast\", or \"steadfast node\"), or name its socket with --socket", path)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "you may not use the node's socket %s; run this as root, or as the node's user", path)
	}
	return apierror.FromConnect(err)
}

// complete offers names for a flag, or with flag "" for the first argument.
// It is asked while somebody types, so a node that does not answer soon is
// none.
func (a *app) complete(cmd *cobra.Command, flag string, names func(context.Context) []string) {
	ask := func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if flag == "" && len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		return names(ctx), cobra.ShellCompDirectiveNoFileComp
	}
	if flag == "" {
		cmd.ValidArgsFunction = ask
		return
	}
	// It fails only for a flag that the command has not.
	_ = cmd.RegisterFlagCompletionFunc(flag, ask)
}
