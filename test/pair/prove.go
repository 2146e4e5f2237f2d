package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"steadfast/test/verify"
)

// proof is a pair whose verdicts are known.
type proof struct {
	product string
	drives  bool
	kind    kind
	wrong   verify.Kind // what the second round must find; the first is clean
	clean   bool        // so is the second
}

// proofs are one that is right, and one for each way of being wrong that can
// be had without breaking the product. The judge's own tests have them all.
func proofs() ([]proof, error) {
	kill, err := choose("kill-owner")
	if err != nil {
		return nil, err
	}
	calm, err := choose("nothing")
	if err != nil {
		return nil, err
	}
	return []proof{
		{product: "node", kind: kill[0], clean: true},
		{product: "rollback", kind: kill[0], wrong: verify.Lost},
		{product: "node", kind: calm[0], drives: true, wrong: verify.Failed},
	}, nil
}

// prove tries the harness itself: it must find what is wrong, and no more.
func (r *run) prove(ctx context.Context) error {
	list, err := proofs()
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := r.proveOn(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.product, err)
		}
	}
	return nil
}

// proveOn runs two rounds of a proof.
func (r *run) proveOn(ctx context.Context, what proof) (err error) {
	s := r.settings
	s.product, s.build.Product = what.product, what.product
	p, err := newRunner(ctx, s, what.drives)
	defer func() { err = errors.Join(err, p.Close()) }()
	if err != nil {
		return err
	}
	for n := range 2 {
		k := what.kind
		if what.drives && n == 1 {
			k.do = failAlone
		}
		rows, err := p.round(ctx, k, n)
		if err != nil && len(rows) == 0 {
			return err
		}
		before := r.failed
		for _, row := range rows {
			if n == 0 || what.clean {
				r.say(row)
			} else {
				r.judge(row, what.wrong)
			}
		}
		if r.failed > before {
			r.logs(p)
		}
	}
	return nil
}

// failAlone has the drive of a node fail that has no other.
func failAlone(ctx context.Context, r *round) error {
	d := r.world.drives[r.owner]
	r.fault()
	if err := d.Fail(); err != nil {
		return err
	}
	pause(ctx, time.Second)
	s, ok := r.pair.(*standin)
	if !ok {
		return errors.New("not a stand-in")
	}
	return s.repair(ctx, d)
}

// judge counts a row that must have found something.
func (r *run) judge(row Row, kind verify.Kind) {
	good := row.Lost > 0
	if kind == verify.Failed { // and what was acknowledged is there all the same
		good = row.Errors > 0 && row.Lost+row.Stale+row.Torn+row.Corrupt == 0
	}
	verdict := "ok  "
	if good && row.Failed != "" {
		r.passed++
	} else {
		r.failed++
		verdict = "FAIL"
	}
	fmt.Printf("%s %s %s: must find %v: %d lost, %d stale, %d torn, %d corrupt, %d errors\n",
		verdict, row.Product, row.Client, kind, row.Lost, row.Stale, row.Torn, row.Corrupt, row.Errors)
}
