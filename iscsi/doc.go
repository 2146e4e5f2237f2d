// Package iscsi speaks the iSCSI protocol of RFC 7143 as both ends of a
// connection need it: PDU headers, text keys and their negotiation, the login
// phase, CHAP, names and digests. It decodes, decides and encodes; it owns no
// socket, clock or goroutine, and it takes randomness as an input.
//
// The target's login is a state machine fed one request at a time:
//
//	           AuthMethod          CHAP_A         CHAP_N, CHAP_R
//	security ------------> method -------> challenge ----------> proven
//	    |                                                          |
//	    | no authentication asked for                              |
//	    +------------------------> operational <-------------------+
//	                                    |
//	                                    | transit to 3
//	                                    v
//	                           full feature phase
//
// Nothing here trusts its input: every length is checked before it is used,
// and decoders are fuzzed. Headers are handled in their wire form ([48]byte)
// with typed accessors, so that the data path neither copies nor allocates
// for them.
package iscsi
