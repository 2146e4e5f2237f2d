package vmlock

import (
	"slices"

	"steadfast/fault"
)

// Home is the volume that has the lock block.
const Home = 0

// ReservationType is Write Exclusive, Registrants Only. SPC-4, 6.15.3.4.
const ReservationType = 5

// roundsMax bounds how often an attempt begins something anew because others
// came in between. Each of them gets there once; so many have never been seen.
const roundsMax = 100

// Config is what an attempt is made with.
type Config struct {
	VM         ID
	Me         Owner
	Generation uint64 // of the placement
	Attempt    uint8  // from 1 to AttemptMax; then another generation is needed
	Nonce      [16]byte
	// Nexuses are how many each volume has; the first volume is the home, and all
	// have at least one.
	Nexuses []int
	// Pairing is of a secondary that takes the lock over from its primary: the block
	// that it was told. The attempt replaces this one and no other, whatever is
	// newer or older. Nil: a placement's attempt.
	Pairing *[BlockSize]byte
	// Broken is a rule to break, for tests and the simulation.
	Broken Flaw
}

// Op is a command to a volume. Volumes and nexuses count from 0, in the order of
// Config.
type Op interface{ op() }

// Ops.
type (
	// ReadBlock reads the lock block: the first BlockSize bytes of the home.
	ReadBlock struct{}
	// CompareAndWrite replaces the lock block if it is Old.
	CompareAndWrite struct{ Old, New [BlockSize]byte }
	// Register registers a nexus: REGISTER AND IGNORE EXISTING KEY, with APTPL.
	// SPC-4, 5.13.7.
	Register struct {
		Volume, Nexus int
		Key           uint64
	}
	// ReadKeys reads the keys and the reservation, keys first.
	ReadKeys struct{ Volume int }
	// Reserve reserves as ReservationType.
	Reserve struct {
		Volume int
		Key    uint64
	}
	// Preempt is PREEMPT AND ABORT of Other's key, as ReservationType. SPC-4,
	// 5.13.11.
	Preempt struct {
		Volume     int
		Key, Other uint64
	}
)

func (ReadBlock) op()       {}
func (CompareAndWrite) op() {}
func (Register) op()        {}
func (ReadKeys) op()        {}
func (Reserve) op()         {}
func (Preempt) op()         {}

// Status is how a command ended.
type Status uint8

// Statuses.
const (
	Good       Status = iota
	Miscompare        // of CompareAndWrite: the block is another
	Conflict          // RESERVATION CONFLICT
	Unknown           // no answer; it has landed or never will
	Failed            // for good; Err says why
)

// Input is what happens to a lock.
type Input interface{ input() }

// Inputs.
type (
	// Begin begins the attempt.
	Begin struct{}
	// Answer is that of the Do of this Seq.
	Answer struct {
		Seq    uint64
		Status Status
		Block  [BlockSize]byte // of ReadBlock
		// Keys, one for each registered nexus, the reservation's key (0 for none)
		// and its type, of ReadKeys.
		Keys   []uint64
		Holder uint64
		Type   uint8
		Err    error
	}
	// Conflicted tells that the volumes refuse what this host writes.
	Conflicted struct{}
	// Check asks whether the block still is this host's.
	Check struct{}
	// Join brings one more nexus to a volume.
	Join struct{ Volume, Nexus int }
	// Change makes the holder one of a pair, or with the zero Owner alone again.
	// Nonce is new each time.
	Change struct {
		Partner Owner
		Nonce   [16]byte
	}
	// Release gives the lock back.
	Release struct{}
	// Abandon ends an attempt that is not wanted any more.
	Abandon struct{}
)

func (Begin) input()      {}
func (Answer) input()     {}
func (Conflicted) input() {}
func (Check) input()      {}
func (Join) input()       {}
func (Change) input()     {}
func (Release) input()    {}
func (Abandon) input()    {}

// Effect is what a lock wants done.
type Effect interface{ effect() }

// Effects.
type (
	// Do sends a command; Answer has its Seq.
	Do struct {
		Seq uint64
		Op
	}
	// Held tells that the machine may begin, and write.
	Held struct{}
	// Open tells that a nexus which joined may carry writes.
	Open struct{ Volume, Nexus int }
	// Stop has the machine end at once: another has its lock.
	Stop struct{ Err error }
	// Changed tells that the block is what the Change asked for.
	Changed struct{ Block [BlockSize]byte }
	// Refused tells that a Check, a Join or a Change came to nothing, as far as is
	// known; it may be asked again.
	Refused struct {
		Err    error
		Change bool // it was a Change
	}
	// Done tells that the lock was given back (nil), or that the attempt ended
	// without it. Found is the block's generation when that is what is newer
	// (fault.Stale): a placement above it is needed.
	Done struct {
		Err   error
		Found uint64
	}
)

func (Do) effect()      {}
func (Held) effect()    {}
func (Open) effect()    {}
func (Changed) effect() {}
func (Stop) effect()    {}
func (Refused) effect() {}
func (Done) effect()    {}

// State is where a lock is.
type State uint8

// States, as the package doc draws them.
const (
	New State = iota
	Taking
	Holding
	Releasing
	Over
)

// step is what the present command is for.
type step uint8

const (
	stepIdle         step = iota
	stepPeek              // at the block, before anything is left behind
	stepRegisterHome      // for the right to write the block
	stepRead              // who has it
	stepWin               // COMPARE AND WRITE
	stepRegister
	stepKeys
	stepReserve
	stepLook // at the block, before preempting
	stepPreempt
	stepVerify // the block, before Held
	stepCheck
	stepJoin
	stepJoined  // the block, before Open
	stepChange  // COMPARE AND WRITE
	stepChanged // the block, after an answer that does not tell
	stepDoubt   // the block, before a change that follows one that failed
	stepRelease
	stepReleased // the block, after an unknown answer
)

// Lock is one attempt at a machine's lock, and what follows from it.
type Lock struct {
	cfg    Config
	key    uint64
	state  State
	step   step
	seq    uint64
	sent   Op
	rounds int

	now     Block // as this attempt has, or wants, the block
	next    Block // of a Change that has begun
	doubt   bool  // that Change failed, and may have landed all the same
	changes Change

	old    [BlockSize]byte // what stepWin replaces
	volume int
	nexus  int
	others []uint64 // keys to preempt on the volume
	gone   bool     // the volume lacks a registration of ours; stepLook says what that means

	wanted  []Input  // Check and Join, while Holding
	joining Register // of the Join under way
	joined  []Join   // nexuses that were registered while Holding, or may have been
}

// NewLock returns an attempt that has not begun. Fails as Key does, and with
// fault.Invalid for volumes that cannot be.
func NewLock(cfg Config) (*Lock, error) {
	key, err := Key(cfg.Me, cfg.Generation, cfg.Attempt)
	if err != nil {
		return nil, err
	}
	if len(cfg.Nexuses) == 0 || slices.Min(cfg.Nexuses) < 1 {
		return nil, fault.New(fault.Invalid, "a machine's lock needs a home volume, and a nexus to each volume")
	}
	if cfg.Broken == flawKeyReused {
		key = uint64(cfg.Me.Host)
	}
	now := Block{VM: cfg.VM, Generation: cfg.Generation, Owner: cfg.Me, Attempt: cfg.Attempt, Nonce: cfg.Nonce, Held: true}
	if cfg.Pairing != nil {
		p := *cfg.Pairing
		cfg.Pairing = &p
		b, err := Decode(p)
		if err != nil || !b.Held || b.VM != cfg.VM || b.Generation != cfg.Generation || b.Partner != cfg.Me {
			return nil, fault.New(fault.Invalid, "the block to take over from is not of a pair of this host at generation %d", cfg.Generation)
		}
		now.Turn = b.Turn + 1
	}
	cfg.Nexuses = slices.Clone(cfg.Nexuses)
	return &Lock{cfg: cfg, key: key, now: now}, nil
}

// State returns where the lock is.
func (l *Lock) State() State { return l.state }

// Block returns the block as this host has it, or, before it is won, will.
func (l *Lock) Block() [BlockSize]byte { return l.now.Encode() }

// Key returns the key of this attempt.
func (l *Lock) Key() uint64 { return l.key }

// Step takes one input and returns what is to be done, in order.
func (l *Lock) Step(in Input) []Effect {
	switch in := in.(type) {
	case Begin:
		if l.state == New {
			l.state = Taking
			return l.do(stepPeek, ReadBlock{})
		}
	case Answer:
		if in.Seq == l.seq && l.step != stepIdle {
			return l.answer(in)
		}
	case Conflicted:
		if l.state == Holding {
			return l.stop()
		}
	case Check, Join, Change:
		if j, ok := in.(Join); ok && l.state == Holding && !l.joins(j) {
			return []Effect{Refused{Err: fault.New(fault.Invalid, "nexus %d of volume %d is registered already, or no nexus", j.Nexus, j.Volume)}}
		}
		if l.state == Holding {
			l.wanted = append(l.wanted, in)
			return l.proceed()
		}
	case Release:
		if l.state == Holding {
			l.wanted = []Input{in}
			if l.step == stepCheck || l.step == stepJoin || l.step == stepJoined {
				// What they still have under way is answered to nobody: Seq tells. It
				// changes no block.
				l.step = stepIdle
			}
			return l.proceed()
		}
	case Abandon:
		if l.state == New || l.state == Taking {
			return l.done(fault.New(fault.Canceled, "the machine is not wanted on this host any more"), 0)
		}
	}
	return nil
}

// joins tells whether a nexus may join. One that is open was registered, and is
// not registered again: if it was preempted since, what is queued on it would
// land.
func (l *Lock) joins(j Join) bool {
	if j.Volume < 0 || j.Volume >= len(l.cfg.Nexuses) || j.Nexus < l.cfg.Nexuses[j.Volume] {
		return false
	}
	return !slices.Contains(l.joined, j) && !slices.Contains(l.wanted, Input(j))
}

// givenBack is the lock block as this attempt gives it back.
func (l *Lock) givenBack() [BlockSize]byte {
	b := l.now
	b.Held, b.Partner = false, Owner{}
	return b.Encode()
}

// do sends a command.
func (l *Lock) do(s step, op Op) []Effect {
	l.seq++
	l.step, l.sent = s, op
	return []Effect{Do{l.seq, op}}
}

func (l *Lock) done(err error, found uint64) []Effect {
	l.state, l.step, l.wanted = Over, stepIdle, nil
	return []Effect{Done{err, found}}
}

// stop is the end of a holder that was taken over from. It writes nothing more,
// not even to tidy up: all there is belongs to another now.
func (l *Lock) stop() []Effect {
	l.state, l.step, l.wanted = Over, stepIdle, nil
	return []Effect{Stop{fault.New(fault.Fenced, "another host has taken over the machine")}}
}

// answer takes the answer of the present command.
func (l *Lock) answer(a Answer) []Effect {
	if a.Status == Failed {
		err := a.Err
		if err == nil {
			err = fault.New(fault.Failed, "a command failed")
		}
		if l.state == Holding {
			change := l.step == stepChange || l.step == stepChanged || l.step == stepDoubt
			l.doubt = l.doubt || change
			l.step = stepIdle
			return append([]Effect{Refused{err, change}}, l.proceed()...)
		}
		return l.done(fault.Wrap(fault.KindOf(err), err, "the machine's lock"), 0)
	}
	switch l.step {
	case stepRegisterHome, stepRegister, stepJoin:
		return l.registered(a)
	case stepPeek, stepRead:
		return l.read(a)
	case stepWin:
		return l.won(a)
	case stepKeys:
		return l.keys(a)
	case stepReserve:
		// In a conflict another was first; its key is among those read next.
		return l.do(stepKeys, ReadKeys{l.volume})
	case stepLook, stepVerify, stepCheck, stepJoined:
		return l.looked(a)
	case stepPreempt:
		return l.preempted(a)
	case stepChange:
		return l.change(a)
	case stepChanged, stepDoubt:
		return l.changed(a)
	case stepRelease, stepReleased:
		return l.released(a)
	case stepIdle:
	}
	return nil
}

// again counts a round that others cost, and goes on unless there were too many.
// A holder never gives up: it has a machine that runs.
func (l *Lock) again(then func() []Effect) []Effect {
	if l.rounds++; l.rounds > roundsMax && l.state == Taking {
		return l.done(fault.New(fault.Busy, "others take the machine's lock at the same time; this host will try again"), 0)
	}
	return then()
}

// registerHome begins at the beginning.
func (l *Lock) registerHome() []Effect {
	if l.cfg.Broken == flawPreemptFirst && l.volume < len(l.cfg.Nexuses) {
		return l.register()
	}
	l.volume, l.nexus = Home, 0
	return l.do(stepRegisterHome, Register{Home, 0, l.key})
}

// registered follows a Register. One of which nothing is known is asked again:
// it does the same twice.
func (l *Lock) registered(a Answer) []Effect {
	op, _ := l.sent.(Register)
	switch {
	case a.Status == Unknown:
		return l.again(func() []Effect { return l.do(l.step, op) })
	case a.Status != Good && l.state == Holding:
		l.step = stepIdle
		return append([]Effect{Refused{Err: fault.New(fault.Failed, "a nexus could not be registered")}}, l.proceed()...)
	case a.Status != Good:
		return l.done(fault.New(fault.Failed, "the volume %d does not take a registration", op.Volume), 0)
	case l.step == stepJoin:
		l.joining = op
		if l.cfg.Broken == flawNoJoinCheck {
			l.step = stepJoined
			return l.checked()
		}
		return l.do(stepJoined, ReadBlock{})
	}
	if l.nexus++; l.nexus < l.cfg.Nexuses[l.volume] {
		return l.do(l.step, Register{l.volume, l.nexus, l.key})
	}
	if l.step == stepRegisterHome {
		return l.do(stepRead, ReadBlock{})
	}
	return l.do(stepKeys, ReadKeys{l.volume})
}

// read follows reading the block before it is won. The first time is before this
// host has registered anywhere, so that one which comes too late leaves nothing.
func (l *Lock) read(a Answer) []Effect {
	if a.Status != Good {
		return l.again(func() []Effect { return l.do(l.step, ReadBlock{}) })
	}
	b, err := l.decode(a.Block)
	switch {
	case err != nil:
		return l.done(err, 0)
	case l.mine(b):
		return l.fence()
	case l.newer(b, a.Block):
		return l.superseded(b)
	case l.step == stepPeek:
		return l.registerHome()
	}
	l.old = a.Block
	return l.do(stepWin, CompareAndWrite{a.Block, l.now.Encode()})
}

// won follows COMPARE AND WRITE. Without GOOD it is not known who has the block:
// read it. A conflict is one with the home's reservation: this host was
// preempted there by another one that is taking the lock, which may be older.
func (l *Lock) won(a Answer) []Effect {
	switch a.Status {
	case Good:
		return l.fence()
	case Conflict:
		return l.again(l.registerHome)
	case Unknown:
		if l.cfg.Broken == flawBlindRetry {
			return l.do(stepWin, l.sent)
		}
		fallthrough
	default:
		if l.cfg.Broken == flawBlindRetry {
			return l.superseded(l.now)
		}
		return l.again(func() []Effect { return l.do(stepRead, ReadBlock{}) })
	}
}

// decode reads the block as that of this machine.
func (l *Lock) decode(p [BlockSize]byte) (Block, error) {
	b, err := Decode(p)
	switch {
	case err != nil:
		return b, fault.Wrap(fault.KindOf(err), err, "the machine's home volume; if it is damaged, delete the machine and register it again: \"steadfast vm register\"")
	case b.VM != l.cfg.VM:
		return b, fault.New(fault.Invalid, "the home volume is that of the machine %s, not of %s", b.VM, l.cfg.VM)
	}
	return b, nil
}

// mine tells whether the block is as this attempt wrote it. Only the nonce tells:
// a former life of this host, or an earlier attempt, wrote one much like it.
func (l *Lock) mine(b Block) bool {
	if l.cfg.Broken == flawNonceUnchecked {
		return b.Held && b.Owner.Host == l.cfg.Me.Host
	}
	return b == l.now || l.doubt && b == l.next
}

// newer tells whether the block is of a placement, or an attempt, that this one
// must not follow. That two hosts have one generation is never decided; if it
// is so all the same, the first one has it. A secondary follows one block only.
func (l *Lock) newer(b Block, p [BlockSize]byte) bool {
	if l.cfg.Pairing != nil {
		return p != *l.cfg.Pairing && !l.earlier(b) && (l.cfg.Broken != flawAnyPairing || b.Generation > l.cfg.Generation)
	}
	return b.Generation > l.cfg.Generation || b.Generation == l.cfg.Generation && (b.Owner != l.cfg.Me || b.Attempt >= l.cfg.Attempt)
}

// earlier tells whether the block is of an earlier attempt to succeed the same
// pairing: nobody else is its partner.
func (l *Lock) earlier(b Block) bool {
	return b.Held && !b.Paired() && b.Generation == l.cfg.Generation && b.Turn == l.now.Turn && b.Owner == l.cfg.Me && b.Attempt < l.cfg.Attempt
}

func (l *Lock) superseded(b Block) []Effect {
	return l.done(fault.New(fault.Stale, "the machine's lock has generation %d of host %d, and this is generation %d", b.Generation, b.Owner.Host, l.cfg.Generation), b.Generation)
}

// fence begins with the volumes, once the block is won.
func (l *Lock) fence() []Effect {
	l.volume, l.nexus = Home, 0
	switch l.cfg.Broken {
	case flawWriteFirst:
		return l.hold()
	case flawPreemptFirst:
		return l.do(stepVerify, ReadBlock{})
	default:
	}
	return l.do(stepKeys, ReadKeys{Home}) // where the nexuses are registered
}

// register registers the volume's nexuses.
func (l *Lock) register() []Effect {
	l.nexus = 0
	return l.do(stepRegister, Register{l.volume, 0, l.key})
}

// keys follows reading a volume's keys: it is this attempt's when all its nexuses
// are registered, nobody else is, and it has the reservation.
func (l *Lock) keys(a Answer) []Effect {
	if a.Status != Good {
		return l.again(func() []Effect { return l.do(stepKeys, ReadKeys{l.volume}) })
	}
	own := 0
	l.others = l.others[:0]
	if l.cfg.Broken == flawNoPreempt {
		a.Keys = slices.DeleteFunc(slices.Clone(a.Keys), func(k uint64) bool { return k != l.key })
		a.Holder, a.Type = l.key, ReservationType
	}
	for _, k := range a.Keys {
		if k == l.key {
			own++
		} else if !slices.Contains(l.others, k) {
			l.others = append(l.others, k)
		}
	}
	switch {
	case own < l.cfg.Nexuses[l.volume]:
		l.gone = true
		return l.look()
	case a.Holder == 0:
		return l.again(func() []Effect { return l.do(stepReserve, Reserve{l.volume, l.key}) })
	case len(l.others) > 0:
		// The holder first: the reservation is this one's from then on.
		if k := slices.Index(l.others, a.Holder); k > 0 {
			l.others[0], l.others[k] = l.others[k], l.others[0]
		}
		return l.look()
	case a.Holder != l.key: // it changed between the keys and the reservation
		return l.again(func() []Effect { return l.do(stepKeys, ReadKeys{l.volume}) })
	case a.Type != ReservationType:
		return l.done(fault.New(fault.Busy, "the volume %d has a reservation of type %d; clear it", l.volume, a.Type), 0)
	}
	if l.volume++; l.volume < len(l.cfg.Nexuses) {
		return l.register()
	}
	if l.cfg.Broken == flawPreemptFirst {
		return l.registerHome()
	}
	return l.do(stepVerify, ReadBlock{})
}

// look reads the block between reading the keys and acting on them.
func (l *Lock) look() []Effect {
	if l.cfg.Broken == flawNoLook || l.cfg.Broken == flawPreemptFirst {
		return l.act()
	}
	return l.do(stepLook, ReadBlock{})
}

// act acts on a volume's keys, while the block is this attempt's.
func (l *Lock) act() []Effect {
	if l.gone {
		l.gone = false
		return l.again(l.register)
	}
	return l.again(func() []Effect { return l.do(stepPreempt, Preempt{l.volume, l.key, l.others[0]}) })
}

// looked follows reading the block once it was won.
func (l *Lock) looked(a Answer) []Effect {
	if a.Status == Conflict && l.state == Holding {
		// Reads are refused: another has reserved the home for itself alone. To ask again would
		// be refused as fast, without end.
		return l.stop()
	}
	if a.Status != Good {
		return l.again(func() []Effect { return l.do(l.step, ReadBlock{}) })
	}
	b, err := l.decode(a.Block)
	mine := err == nil && l.mine(b)
	if l.state == Holding {
		if !mine {
			return l.stop()
		}
		return l.checked()
	}
	switch {
	case err != nil:
		return l.done(err, 0)
	case !mine:
		return l.superseded(b)
	case l.step == stepVerify:
		return l.hold()
	}
	return l.act()
}

// preempted follows PREEMPT AND ABORT. In a conflict the other key, or this
// one, is gone, perhaps by this very command, whose answer was lost.
func (l *Lock) preempted(a Answer) []Effect {
	if a.Status == Good {
		if l.others = l.others[1:]; len(l.others) > 0 {
			return l.look()
		}
	}
	return l.do(stepKeys, ReadKeys{l.volume})
}

func (l *Lock) hold() []Effect {
	l.state, l.step, l.rounds = Holding, stepIdle, 0
	return []Effect{Held{}}
}

// proceed does what was asked of a holder, one thing at a time.
func (l *Lock) proceed() []Effect {
	if l.step != stepIdle || len(l.wanted) == 0 || l.state != Holding {
		return nil
	}
	in := l.wanted[0]
	l.wanted = l.wanted[1:]
	switch in := in.(type) {
	case Join:
		l.joined = append(l.joined, in)
		return l.do(stepJoin, Register{in.Volume, in.Nexus, l.key})
	case Change:
		l.changes = in
		if l.doubt {
			return l.do(stepDoubt, ReadBlock{})
		}
		return l.begin()
	case Release:
		l.state = Releasing
		if l.doubt {
			return l.do(stepReleased, ReadBlock{})
		}
		return l.do(stepRelease, CompareAndWrite{l.now.Encode(), l.givenBack()})
	}
	return l.do(stepCheck, ReadBlock{})
}

// begin begins a change.
func (l *Lock) begin() []Effect {
	l.next = l.now
	l.next.Partner, l.next.Nonce = l.changes.Partner, l.changes.Nonce
	l.next.Turn++
	if l.cfg.Broken == flawSameTurn {
		l.next.Turn, l.next.Nonce = 1, l.cfg.Nonce
	}
	return l.do(stepChange, CompareAndWrite{l.now.Encode(), l.next.Encode()})
}

// change follows the COMPARE AND WRITE of a change. A conflict is of a holder that
// was preempted. Everything else but GOOD is for the block to tell.
func (l *Lock) change(a Answer) []Effect {
	switch {
	case a.Status == Good:
		return l.settled()
	case a.Status == Conflict:
		return l.stop()
	case l.cfg.Broken == flawBlindRetry && a.Status == Unknown:
		return l.do(stepChange, l.sent)
	case l.cfg.Broken == flawBlindRetry:
		return l.stop()
	}
	return l.do(stepChanged, ReadBlock{})
}

// changed follows reading the block that a change may have replaced.
func (l *Lock) changed(a Answer) []Effect {
	switch {
	case a.Status == Conflict:
		return l.stop()
	case a.Status != Good:
		return l.do(l.step, ReadBlock{})
	}
	b, err := l.decode(a.Block)
	switch {
	case err == nil && b == l.next && l.step == stepChanged:
		return l.settled()
	case err == nil && b == l.now && l.step == stepChanged:
		return l.do(stepChange, CompareAndWrite{l.now.Encode(), l.next.Encode()})
	case err == nil && (b == l.next || b == l.now):
		l.now, l.doubt = b, false
		return l.begin()
	}
	return l.stop()
}

// settled follows a change that has landed.
func (l *Lock) settled() []Effect {
	l.now, l.doubt, l.step = l.next, false, stepIdle
	return append([]Effect{Changed{l.now.Encode()}}, l.proceed()...)
}

// checked follows finding the block as it should be. The nexus that joined was
// registered before that, and so may be used.
func (l *Lock) checked() (out []Effect) {
	joined := l.step == stepJoined
	l.step = stepIdle
	if joined {
		out = append(out, Open{l.joining.Volume, l.joining.Nexus})
	}
	return append(out, l.proceed()...)
}

// released follows giving the block back.
func (l *Lock) released(a Answer) []Effect {
	if l.step == stepRelease {
		switch a.Status {
		case Good:
			return l.done(nil, 0)
		case Conflict, Miscompare:
			return l.done(fault.New(fault.Fenced, "another host has taken over the machine"), 0)
		default:
			return l.do(stepReleased, ReadBlock{})
		}
	}
	if a.Status != Good {
		return l.again(func() []Effect { return l.do(stepReleased, ReadBlock{}) })
	}
	if l.doubt && a.Block == l.next.Encode() {
		l.now = l.next
	}
	l.doubt = false
	switch a.Block {
	case l.givenBack():
		return l.done(nil, 0)
	case l.now.Encode():
		return l.again(func() []Effect { return l.do(stepRelease, CompareAndWrite{l.now.Encode(), l.givenBack()}) })
	}
	return l.done(fault.New(fault.Fenced, "another host has taken over the machine"), 0)
}
