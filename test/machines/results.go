package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is what was measured of one round. What is 0 was not.
type sample struct {
	struck    time.Time
	live      time.Duration // until the other host spoke as the machine
	stall     time.Duration // the longest that a request took that met with it; on two boxes, that was sent before the box was back
	told      time.Duration // until the machine was said to need a secondary
	whole     time.Duration // until both nodes had all data, from the box's return
	answers   time.Duration // until the client was answered, from then
	protected time.Duration // until the machine was protected again, on two boxes from whole
	copy      time.Duration // the longest that a later request took, until then
	load      float64       // of this machine, the mean of the last minute
}

// String tells what was measured.
func (x sample) String() string {
	var parts []string
	say := func(d time.Duration, format string, args ...any) {
		if d > 0 {
			parts = append(parts, fmt.Sprintf(format, append([]any{d.Seconds()}, args...)...))
		}
	}
	say(x.live, "live after %.3f s")
	say(x.stall, "stall %.3f s")
	say(x.told, "said to need a secondary after %.2f s")
	say(x.whole, "in sync %.1f s after it was back")
	say(x.answers, "answers after %.1f s")
	if x.whole > 0 {
		parts = append(parts, fmt.Sprintf("protected %.1f s after that", x.protected.Seconds()))
	} else {
		say(x.protected, "protected again after %.1f s")
	}
	say(x.copy, "until then up to %.2f s a request")
	return strings.Join(append(parts, fmt.Sprintf("load %.1f", x.load)), ", ")
}

// measured keeps what was measured of a round.
func (r *run) measured(k kind, x sample) { r.samples[k.name] = append(r.samples[k.name], x) }

// loadNow is this machine's load, 0 if it is not known.
func loadNow() float64 {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

// A column is a figure of rounds.
type column struct {
	name string
	of   func(sample) time.Duration
	// limit is what it may be; nil: any.
	limit func(kind) time.Duration
}

// limitOf is a kind's own limit.
func limitOf(k kind) time.Duration { return k.limit }

// The columns of a machine on two hosts, and those of two boxes.
var (
	liveColumn      = column{"live", func(x sample) time.Duration { return x.live }, limitOf}
	stallColumn     = column{"stall", func(x sample) time.Duration { return x.stall }, limitOf}
	toldColumn      = column{"told", func(x sample) time.Duration { return x.told }, limitOf}
	wholeColumn     = column{"in sync", func(x sample) time.Duration { return x.whole }, nil}
	answersColumn   = column{"answers", func(x sample) time.Duration { return x.answers }, nil}
	protectedColumn = column{"protected", func(x sample) time.Duration { return x.protected }, func(kind) time.Duration { return limitProtected }}
	copyColumn      = column{"meanwhile", func(x sample) time.Duration { return x.copy }, nil}

	columns = map[form][]column{
		threeHosts: {liveColumn, stallColumn, protectedColumn, copyColumn},
		twoBoxes:   {liveColumn, stallColumn, toldColumn, wholeColumn, answersColumn, protectedColumn, copyColumn},
	}
)

// over returns the middle and the worst of rounds; false: it was not measured in any.
func (c column) over(list []sample) (p50, worst time.Duration, ok bool) {
	values := make([]time.Duration, len(list))
	for i, x := range list {
		values[i] = c.of(x)
	}
	slices.Sort(values)
	if len(values) == 0 || values[len(values)-1] == 0 {
		return 0, 0, false
	}
	return values[len(values)/2], values[len(values)-1], true
}

// cell is the column of a kind for docs/SPEC.md.
func (c column) cell(k kind, list []sample) string {
	p50, worst, ok := c.over(list)
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%.2f, %.2f s", p50.Seconds(), worst.Seconds())
	if c.limit != nil && c.limit(k) > 0 && worst > c.limit(k) {
		return "**" + text + " (short)**"
	}
	return text
}

// summary prints of each kind the middle and the worst of its rounds, and a table of them.
func (r *run) summary(out io.Writer, chosen []kind) {
	for _, k := range chosen {
		list := r.samples[k.name]
		if len(list) == 0 {
			continue
		}
		text := ""
		for _, c := range columns[k.form] {
			if p50, worst, ok := c.over(list); ok {
				text += fmt.Sprintf("; %s p50 %.3f max %.3f s", c.name, p50.Seconds(), worst.Seconds())
			}
		}
		low, high := loads(list)
		_, _ = fmt.Fprintf(out, "sum  %s  %d rounds%s; load %.1f to %.1f\n", k.name, len(list), text, low, high)
	}
	for _, f := range []form{threeHosts, twoBoxes} {
		r.table(out, chosen, f)
	}
}

// table prints the kinds of a form as a table: p50, worst.
func (r *run) table(out io.Writer, chosen []kind, f form) {
	begun := false
	for _, k := range chosen {
		list := r.samples[k.name]
		if k.form != f || len(list) == 0 {
			continue
		}
		if !begun {
			begun = true
			head, rule := "| kind | limit of live and stall |", "| --- | --- |"
			for _, c := range columns[f] {
				head, rule = head+" "+c.name+" |", rule+" --- |"
			}
			_, _ = fmt.Fprintf(out, "\n%s rounds | load |\n%s --- | --- |\n", head, rule)
		}
		limit := ""
		if k.limit > 0 {
			limit = strconv.FormatFloat(k.limit.Seconds(), 'g', -1, 64) + " s"
		}
		row := fmt.Sprintf("| `%s`: %s | %s |", k.name, k.does, limit)
		for _, c := range columns[f] {
			row += " " + c.cell(k, list) + " |"
		}
		low, high := loads(list)
		_, _ = fmt.Fprintf(out, "%s %d | %.0f to %.0f |\n", row, len(list), low, high)
	}
	if begun {
		_, _ = fmt.Fprintln(out)
	}
}

// loads are the least and the greatest load that rounds met with.
func loads(list []sample) (low, high float64) {
	by := func(a, b sample) int { return cmp.Compare(a.load, b.load) }
	return slices.MinFunc(list, by).load, slices.MaxFunc(list, by).load
}
