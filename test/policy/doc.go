// Package policy holds the house rules as tests: which package may import
// which, that every package says what it is for, how long a file may be, that
// what starts goroutines checks for leaked ones, and that nothing of the
// machine a file was written on has got into it.
//
// It reads source files and imports nothing of the tree, needs no network and
// no tools, and never writes.
package policy
