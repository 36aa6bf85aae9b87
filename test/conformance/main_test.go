package main

import (
	"slices"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/erofsvm/erofsvm/test/conformance/tally"
	"github.com/erofsvm/erofsvm/test/harness"
)

// TestEverySuiteHasAListWithReasons: the page that ships with the program.
func TestEverySuiteHasAListWithReasons(t *testing.T) {
	lists, err := tally.ParseLists(skips)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"shimtest"}
	for _, release := range harness.Releases {
		want = append(want, "containerd "+release)
	}
	for _, suite := range want {
		if _, ok := lists[suite]; !ok {
			t.Errorf("no list for %s", suite)
		}
	}
	for suite := range lists {
		if !slices.Contains(want, suite) {
			t.Errorf("a list for %s, which is no suite", suite)
		}
	}
}

// TestTheShortRunSkipsNothing: what is left out, or skips itself, proves nothing.
func TestTheShortRunSkipsNothing(t *testing.T) {
	lists, err := tally.ParseLists(skips)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range lists["containerd "+harness.Releases[0]] {
		for _, half := range clientShort {
			if slices.Contains(half, s.Name) {
				t.Errorf("%s is in the short run", s.Name)
			}
		}
	}
}

func TestTheSnapshotterIsAddedToWhatTheTestsConfigure(t *testing.T) {
	for name, config := range map[string]string{
		"no plugins":  "version = 3\nroot = \"/r\"\n",
		"own plugins": "version = 3\nroot = \"/r\"\n[plugins.'io.containerd.internal.v1.restart']\ninterval = \"1s\"\n",
	} {
		more, err := withSnapshotter([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Version int
			Root    string
			Plugins map[string]map[string]any
		}
		if err := toml.Unmarshal(more, &got); err != nil {
			t.Fatal(err)
		}
		if got.Version != 3 || got.Root != "/r" {
			t.Errorf("%s: what was there is gone: %s", name, more)
		}
		if got.Plugins["io.containerd.snapshotter.v1.erofs"]["default_size"] != "64M" {
			t.Errorf("%s: no writable layers: %s", name, more)
		}
		if name == "own plugins" && got.Plugins["io.containerd.internal.v1.restart"]["interval"] != "1s" {
			t.Errorf("%s: the tests' plugin is gone: %s", name, more)
		}
	}
	if _, err := withSnapshotter([]byte("= nonsense")); err == nil {
		t.Error("nonsense is taken")
	}
}
