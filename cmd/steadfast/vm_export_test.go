package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/fault"
)

// exports is a node with one machine, which runs for a moment before its second disk is read if
// it is to.
type exports struct {
	steadfastv1connect.UnimplementedMachineServiceHandler
	runs       bool
	generation atomic.Uint64
}

// GetMachine implements the API's call.
func (e *exports) GetMachine(context.Context, *steadfastv1.GetMachineRequest) (*steadfastv1.GetMachineResponse, error) {
	return &steadfastv1.GetMachineResponse{Machine: &steadfastv1.Machine{
		Name: "m", Id: "1", State: "stopped", Desired: "stopped", Generation: e.generation.Load(),
		Disks: []*steadfastv1.MachineDisk{{Name: "root", Volume: "m.root", Bytes: 4096}, {Name: "data", Volume: "m.data", Bytes: 4096}},
	}}, nil
}

// ReadMachine implements the API's call.
func (e *exports) ReadMachine(_ context.Context, r *steadfastv1.ReadMachineRequest, out *connect.ServerStream[steadfastv1.ReadMachineResponse]) error {
	if r.Part == "disk/data" && e.runs {
		e.generation.Add(1)
	}
	if err := out.Send(&steadfastv1.ReadMachineResponse{FileName: r.Part, Bytes: 4096}); err != nil {
		return err
	}
	return out.Send(&steadfastv1.ReadMachineResponse{Data: bytes.Repeat([]byte{7}, 4096)})
}

// TestVMExportOneMoment: a machine that was started between two of its disks is no export, and
// nothing is left of it.
func TestVMExportOneMoment(t *testing.T) {
	for _, runs := range []bool{false, true} {
		to := filepath.Join(t.TempDir(), "out")
		var out, errs bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, errs: &errs, getenv: os.Getenv}
		status := a.run(t.Context(), []string{"--socket", serveConsoles(t, &exports{runs: runs}), "vm", "export", "m", "--to", to})
		if !runs {
			if status != 0 || !exists(filepath.Join(to, exportFile)) {
				t.Errorf("status %d: %s", status, errs.String())
			}
			continue
		}
		if status != fault.Busy.Of().Exit || !strings.Contains(errs.String(), "started while it was read") {
			t.Errorf("status %d: %s", status, errs.String())
		}
		if exists(to) {
			t.Error("the folder is left")
		}
	}
}
