package quorumio

import (
	"fmt"
	"log/slog"
)

// raftLogger gives raft's lines to slog: its own levels, one down, for what it
// tells is of interest to who looks into raft. Where raft gives up it panics,
// and the loop ends the member.
type raftLogger struct{ log *slog.Logger }

const raftLine = "raft"

func (l raftLogger) Debug(v ...any)              {}
func (l raftLogger) Debugf(string, ...any)       {}
func (l raftLogger) Info(v ...any)               { l.log.Debug(raftLine, "text", fmt.Sprint(v...)) }
func (l raftLogger) Infof(f string, v ...any)    { l.log.Debug(raftLine, "text", fmt.Sprintf(f, v...)) }
func (l raftLogger) Warning(v ...any)            { l.log.Info(raftLine, "text", fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any) { l.log.Info(raftLine, "text", fmt.Sprintf(f, v...)) }
func (l raftLogger) Error(v ...any)              { l.log.Warn(raftLine, "text", fmt.Sprint(v...)) }
func (l raftLogger) Errorf(f string, v ...any)   { l.log.Warn(raftLine, "text", fmt.Sprintf(f, v...)) }

func (l raftLogger) Fatal(v ...any)            { panic(raftPanic(fmt.Sprint(v...))) }
func (l raftLogger) Fatalf(f string, v ...any) { panic(raftPanic(fmt.Sprintf(f, v...))) }
func (l raftLogger) Panic(v ...any)            { panic(raftPanic(fmt.Sprint(v...))) }
func (l raftLogger) Panicf(f string, v ...any) { panic(raftPanic(fmt.Sprintf(f, v...))) }

// raftPanic is raft's word that its log contradicts what it is told.
type raftPanic string
