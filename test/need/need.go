// Package need is for tests that need something of the machine. Where it is missing
// they are skipped, with the reason, but fail where CI is "true": that says that all
// of it is meant to be there, and a skip would hide that it is not.
//
// It keeps no state. Its functions end the test, so they are called from the test's
// own goroutine.
package need

import (
	"os"
	"testing"
)

// Root is for a test that must be root "to mount", or whatever else to says.
func Root(t testing.TB, to string) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		Missing(t, "needs root %s: the effective user id is %d", to, uid)
	}
}

// NoError is for a test that needs what err says is not there.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		Missing(t, "%v", err)
	}
}

// Missing says what is missing, and how to get it.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
