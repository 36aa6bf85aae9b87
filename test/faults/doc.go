// Package faults holds the tests of what goes wrong: broken and hostile files,
// a configuration that leads nowhere, guests that panic or say nothing, and
// processes that are killed. Each asks for the same three things: one clear
// error to the caller, a deadline that was kept, and nothing left on the host.
//
// They run the whole path, as package e2e does, and need the same.
package faults
