package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"steadfast/node/size"
)

// show prints one thing: as JSON, or by text.
func (a *app) show(m proto.Message, text func(w io.Writer)) error {
	if a.output == "json" {
		return a.printJSON(toJSON(m.ProtoReflect()))
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// table prints a list: as a JSON array, or a line for each under a head.
func table[M proto.Message](a *app, list []M, head string, line func(M) []any) error {
	if a.output == "json" {
		all := make([]any, 0, len(list))
		for _, m := range list {
			all = append(all, toJSON(m.ProtoReflect()))
		}
		return a.printJSON(all)
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	row(w, asAny(strings.Fields(head))...)
	for _, m := range list {
		row(w, line(m)...)
	}
	return w.Flush()
}

// row writes the cells of a line; an empty one as a dash, so that columns can
// be counted.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		if texts[i] = fmt.Sprint(c); texts[i] == "" {
			texts[i] = "-"
		}
	}
	// w is a tabwriter, which keeps errors for its Flush.
	_, _ = io.WriteString(w, strings.Join(texts, "\t")+"\n")
}

func asAny(words []string) []any {
	out := make([]any, len(words))
	for i, w := range words {
		out[i] = w
	}
	return out
}

// say prints to standard output on the way to something else, whose error is
// the one to report.
func (a *app) say(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// note prints beside the output, to standard error.
func (a *app) note(format string, args ...any) { _, _ = fmt.Fprintf(a.errs, format, args...) }

// did prints what a change came to: the thing as JSON, or a sentence.
func (a *app) did(m proto.Message, format string, args ...any) error {
	if a.output == "json" {
		if m == nil {
			return a.printJSON(object{})
		}
		return a.printJSON(toJSON(m.ProtoReflect()))
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// object is a JSON object that keeps its fields' order.
type object []field

type field struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, f := range o {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	return append(b, '}'), nil
}

// toJSON returns a message as JSON: every field under its name in the .proto
// file, so that a script finds what it looks for also when it is zero, and
// numbers as numbers (protojson makes 64-bit ones strings).
func toJSON(m protoreflect.Message) any {
	if t, ok := m.Interface().(*timestamppb.Timestamp); ok {
		return t.AsTime().Format(time.RFC3339Nano)
	}
	fields := m.Descriptor().Fields()
	o := make(object, 0, fields.Len())
	for i := range fields.Len() {
		f := fields.Get(i)
		o = append(o, field{f.TextName(), fieldJSON(m, f)})
	}
	return o
}

func fieldJSON(m protoreflect.Message, f protoreflect.FieldDescriptor) any {
	switch {
	case f.IsList():
		l := m.Get(f).List()
		all := make([]any, 0, l.Len())
		for i := range l.Len() {
			all = append(all, valueJSON(f, l.Get(i)))
		}
		return all
	case f.Message() != nil && !m.Has(f):
		return nil
	}
	return valueJSON(f, m.Get(f))
}

func valueJSON(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	if f.Message() != nil {
		return toJSON(v.Message())
	}
	return v.Interface()
}

// share returns part of whole in percent.
func share(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

// when returns a time in the reader's zone, or nothing.
func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// onOff says a switch's state as the flags take it.
func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// sizeFlag is a flag that takes 10G.
type sizeFlag int64

// String implements pflag.Value.
func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return size.Format(int64(*s))
}

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	n, err := size.Parse(text)
	*s = sizeFlag(n)
	return err
}

// Type implements pflag.Value; help shows it.
func (s *sizeFlag) Type() string { return "size" }

// switchFlag is a flag that takes on or off.
type switchFlag bool

// String implements pflag.Value.
func (s *switchFlag) String() string { return onOff(bool(*s)) }

// Set implements pflag.Value.
func (s *switchFlag) Set(text string) error {
	switch text {
	case "on", "true", "yes":
		*s = true
	case "off", "false", "no":
		*s = false
	default:
		return fmt.Errorf("%q is neither on nor off", text)
	}
	return nil
}

// Type implements pflag.Value; help shows it.
func (s *switchFlag) Type() string { return "on|off" }
