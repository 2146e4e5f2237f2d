// Package steadfastv1 is the messages of Steadfast's API, made from the .proto files beside
// it; package steadfastv1connect has its services. It is the one interface that is kept
// compatible, in the way of Protocol Buffers: fields and calls are added, never changed or
// given another meaning, and removed only with a new version of the package.
//
// "make generate" makes all files but this one anew.
package steadfastv1
