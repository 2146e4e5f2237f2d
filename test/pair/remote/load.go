package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"steadfast/test/verify"
)

// Load is the host's side: a load in a guest.
type Load struct {
	conn net.Conn
	in   *bufio.Reader
	size int64

	exchange sync.Mutex
	dead     error     // why there are no more answers
	clock    clockPair // at the last cut

	mu       sync.Mutex
	counts   verify.Counts
	findings []verify.Finding
}

// clockPair is one moment by both clocks.
type clockPair struct {
	host  time.Time
	guest time.Duration
}

// Connect waits for the guest's greeting: that is after it has started.
func Connect(ctx context.Context, conn net.Conn) (*Load, error) {
	l := &Load{conn: conn, in: bufio.NewReader(conn)}
	a, err := l.receive(ctx)
	if err != nil {
		return nil, fmt.Errorf("the guest does not greet: %w", err)
	}
	l.size = a.Size
	return l, nil
}

// Size is the disk's, in bytes.
func (l *Load) Size() int64 { return l.size }

// Fill has the first size bytes of the disk written and from then on judged.
func (l *Load) Fill(ctx context.Context, disk uint32, size int64) error {
	_, err := l.ask(ctx, request{Do: doFill, Disk: disk, Size: size})
	return err
}

// Start starts the lanes, once.
func (l *Load) Start(ctx context.Context, lanes ...Lane) error {
	_, err := l.ask(ctx, request{Do: doStart, Lanes: lanes})
	return err
}

// ReadBack has all read that is judged.
func (l *Load) ReadBack(ctx context.Context) error {
	_, err := l.ask(ctx, request{Do: doReadBack})
	return err
}

// Stop ends the load after what is under way.
func (l *Load) Stop(ctx context.Context) error {
	_, err := l.ask(ctx, request{Do: doStop})
	return err
}

// answerPatience is how long an answer may take that takes no time: the guest's
// processor is emulated by one that has other things to do.
const answerPatience = time.Minute

// Settle waits, until ctx ends, for what was under way at the call. It says so
// when that was too short, and the guest goes on.
func (l *Load) Settle(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	patience := answerPatience
	if end, ok := ctx.Deadline(); ok {
		patience = time.Until(end)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience+answerPatience)
	defer cancel()
	_, err := l.ask(ctx, request{Do: doSettle, Patience: patience})
	return err
}

// Of two windows' ends by the host's clock and the guest's, what may differ: a
// constant, for how long an answer is under way varies, and a share of the time.
const (
	clockSlipMax   = 2 * time.Second
	clockDriftOver = 20 // one part in so many
)

// Cut ends the window of every lane, as verify.Load has it. A guest's clock that
// did not go as ours did is an error: then its times mean nothing.
func (l *Load) Cut(ctx context.Context) ([]verify.Window, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	a, err := l.ask(ctx, request{Do: doCut})
	if err != nil {
		return nil, err
	}
	l.exchange.Lock()
	defer l.exchange.Unlock()
	now, last := clockPair{time.Now(), a.Clock}, l.clock
	l.clock = now
	if last.host.IsZero() {
		return a.Windows, nil
	}
	host, guest := now.host.Sub(last.host), now.guest-last.guest
	if slip := (guest - host).Abs(); slip > clockSlipMax+host/clockDriftOver {
		return a.Windows, fmt.Errorf("the guest's clock went %v in %v", guest, host)
	}
	return a.Windows, nil
}

// Counts returns what was found, as of the last answer.
func (l *Load) Counts() verify.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Findings returns the first findings in full, as of the last answer.
func (l *Load) Findings() []verify.Finding {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.findings)
}

// Close ends the line, also under an exchange.
func (l *Load) Close() error { return l.conn.Close() }

// ask sends a request and waits for its answer.
func (l *Load) ask(ctx context.Context, what request) (answer, error) {
	l.exchange.Lock()
	defer l.exchange.Unlock()
	if l.dead != nil {
		return answer{}, l.dead
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := send(l.conn, what)
	var a answer
	if err == nil {
		a, err = l.receive(ctx)
	}
	if err != nil {
		l.dead = fmt.Errorf("the guest, asked to %s: %w", what.Do, err)
		return answer{}, l.dead
	}
	l.mu.Lock()
	l.counts = a.Counts
	l.findings = append(l.findings, a.Findings...)
	l.mu.Unlock()
	if a.Error != "" {
		return a, fmt.Errorf("the guest: %s: %s", what.Do, a.Error)
	}
	return a, nil
}

// receive reads one answer. What ctx ends is over for good.
func (l *Load) receive(ctx context.Context) (a answer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := l.in.ReadBytes('\n')
	if err != nil {
		return a, errors.Join(err, ctx.Err())
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, fmt.Errorf("not an answer: %q: %w", text, err)
	}
	return a, nil
}
