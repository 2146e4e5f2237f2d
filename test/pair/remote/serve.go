package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"steadfast/test/verify"
)

// server is the guest's side.
type server struct {
	disk  verify.Disk
	began time.Time
	judge *verify.Judge // after fill
	load  *verify.Load  // after start
	told  int           // findings that an answer has had
}

// Serve greets, and does what is asked on line until that ends, which is no error.
// What it does it also says on story, a line each, for a person.
func Serve(line io.ReadWriter, disk verify.Disk, story io.Writer) error {
	s := &server{disk: disk, began: time.Now()}
	defer func() {
		if s.load != nil {
			s.load.Stop()
		}
	}()
	if err := send(line, answer{Size: disk.Size()}); err != nil {
		return err
	}
	in := bufio.NewReader(line)
	for {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var ask request
		if err := json.Unmarshal(text, &ask); err != nil {
			return fmt.Errorf("not a request: %q: %w", text, err)
		}
		a := s.answer(ask)
		_, _ = fmt.Fprintf(story, "%s: %s\n", ask.Do, a.summary())
		if err := send(line, a); err != nil {
			return err
		}
	}
}

// send writes one line, at once.
func send(line io.Writer, what any) error {
	text, err := json.Marshal(what)
	if err != nil {
		return err
	}
	_, err = line.Write(append(text, '\n'))
	return err
}

// answer does what was asked.
func (s *server) answer(ask request) (a answer) {
	if err := s.do(ask, &a); err != nil {
		a.Error = err.Error()
	}
	if s.judge != nil {
		a.Counts = s.judge.Counts()
		all := s.judge.Findings()
		a.Findings = all[s.told:]
		s.told = len(all)
	}
	return a
}

func (s *server) do(ask request, a *answer) error {
	ctx := context.Background()
	if ask.Do == doFill {
		if ask.Size > s.disk.Size() {
			return fmt.Errorf("the disk has %d bytes, not %d", s.disk.Size(), ask.Size)
		}
		s.judge = verify.NewJudge(ask.Disk, ask.Size)
		return verify.Fill(ctx, s.judge, s.disk)
	}
	if s.judge == nil {
		return fmt.Errorf("%s before fill", ask.Do)
	}
	switch ask.Do {
	case doStart:
		return s.start(ask.Lanes)
	case doReadBack:
		return verify.ReadBack(ctx, s.judge, s.disk)
	}
	if s.load == nil {
		return fmt.Errorf("%s before start", ask.Do)
	}
	switch ask.Do {
	case doCut:
		a.Windows, a.Clock = s.load.Cut(), time.Since(s.began)
	case doSettle:
		ctx, cancel := context.WithTimeout(ctx, ask.Patience)
		defer cancel()
		return s.load.Settle(ctx)
	case doStop:
		s.load.Stop()
	default:
		return fmt.Errorf("%q is not known", ask.Do)
	}
	return nil
}

// start starts the lanes. They share the disk: a kernel has one session.
func (s *server) start(lanes []Lane) (err error) {
	if s.load != nil {
		return errors.New("started already")
	}
	var list []verify.Lane
	for _, l := range lanes {
		list = append(list, verify.Lane{Disk: s.disk, Depth: l.Depth, RateMax: l.RateMax})
	}
	s.load, err = verify.StartLoad(s.judge, list...)
	return err
}

// summary is for the story.
func (a answer) summary() string {
	text := "done"
	if a.Error != "" {
		text = a.Error
	}
	for _, w := range a.Windows {
		text += fmt.Sprintf(", %d requests, longest %v", w.IOs, w.Longest.Round(time.Millisecond))
	}
	if !a.Counts.Clean() {
		text += fmt.Sprintf(", found so far %v", a.Counts)
	}
	return text
}
