// Package softfloat is the arithmetic of RISC-V's F and D extensions: IEEE 754-2008
// binary32 and binary64 on raw bits, exact to the last bit and the last exception flag
// in all five rounding modes, and the same on every host.
//
// Every operation that can round takes a rounding mode and returns its result together
// with the flags that it raises; nothing is kept between calls. Where IEEE 754 leaves a
// choice, the RISC-V unprivileged manual (chapters "F" and "D") has made it:
//
//   - A NaN that comes out is always the canonical one, whatever went in ("NaN
//     Generation and Propagation").
//   - Tininess is detected after rounding (IEEE 754-2008, 7.5), and underflow is
//     raised only when the result is inexact, too.
//   - A conversion to an integer that does not fit saturates and raises NV alone; a NaN
//     counts as the largest integer ("Single-Precision Floating-Point Conversion and
//     Move Instructions").
//   - A fused multiply-add of infinity and zero raises NV even when the addend is a
//     quiet NaN.
//   - Minimum and maximum are minimumNumber and maximumNumber of IEEE 754-2019, 9.6.
//
// # Two ways to a result
//
// The plain way (arith.go, format.go, convert.go, compare.go) is integer arithmetic and
// serves every operand and every mode. The short way (fast.go) lets the host's
// floating point find the result of the most usual kind (round to nearest even,
// normal numbers, no overflow near) and proves by exact arithmetic whether it was
// inexact; where its proof does not reach it declines, and the plain way answers. The
// two agree bit for bit, which the tests hold them to: which way was taken is not to be
// seen in any result.
//
// What is trusted: that the host's float32 and float64 are IEEE 754's, rounded to
// nearest even, with subnormal numbers kept. Go promises the first; nothing in this
// binary changes the host's control word. Each host operation is written as an
// explicit conversion, float64(a*b), which the Go specification forbids to fuse.
//
// NaN boxing of binary32 in 64-bit registers, the dynamic rounding mode and the
// accrued flags are the processor's.
//
// Nothing here allocates, locks, or panics.
package softfloat
