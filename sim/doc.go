// Package sim runs the product on one seed: simulated drives and clocks under
// the real code, histories of operations drawn from the seed, and judges that
// know what may be seen. This package has the store's world; sim/pair has that of two
// nodes and a witness, sim/hostlock that of hosts at a machine's lock, and sim/lockstep
// that of a machine on two hosts.
//
// There are three families of the store's histories, each in its file. A crash history
// (crash.go) cuts power or kills the process at write boundaries, during
// recovery too, and holds what is there against the model in package
// storetest. A corruption history (corrupt.go) flips, loses, misdirects and
// hides blocks: a read may fail but never be wrong. A failing history
// (fail.go) has a drive refuse a write or flush for good. In all of them the
// pool is asked now and then what has changed since moments that the history
// remembers (since.go).
//
// One seed is run by
//
//	go test ./sim -seed=N
//
// which prints the whole trace when it fails; -ops=K ends the history after K
// operations, which is how a failing one is shortened. SIM_SEEDS=N or -seeds=N
// chooses how many seeds a run draws. testdata/seeds.txt lists seeds that
// once found something: they are always run. -trace prints what happens as it
// happens, down to each write of a drive.
package sim
