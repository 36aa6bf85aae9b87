package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/erofsvm/erofsvm/configs/dropin"
)

// dumpTimeout is how long containerd may take to print its configuration.
const dumpTimeout = 20 * time.Second

// apply does what was planned. The manifest goes first, and says of each file
// what it was and what it will be.
func (i *Installer) apply(ctx context.Context, o Options, had manifest, steps []step, restart bool) error {
	next := manifest{Version: manifestVersion, Dirs: had.Dirs, Pending: restart}
	then := manifest{Version: manifestVersion, Pending: restart}
	for _, s := range steps {
		known, _ := had.find(s.Path)
		switch {
		case s.Action == Removed:
			next.Files = append(next.Files, known)
			continue
		case s.Action == Kept:
			if known.Path != "" {
				next.Files, then.Files = append(next.Files, known), append(then.Files, known)
			}
			continue
		}
		then.Files = append(then.Files, entry{s.Path, []string{s.sum}, s.file.containerd})
		next.Files = append(next.Files, entry{s.Path, slices.Compact([]string{s.sum, cmp.Or(s.was, s.sum)}), s.file.containerd})
		missing, err := i.missingDirs(s.Path)
		if err != nil {
			return err
		}
		for _, dir := range missing {
			if !slices.Contains(next.Dirs, dir) {
				next.Dirs = append(next.Dirs, dir)
			}
		}
	}
	then.Dirs = next.Dirs
	if err := i.writeManifest(next); err != nil {
		return err
	}
	for _, dir := range next.Dirs {
		if err := i.makeDir(dir); err != nil {
			return err
		}
	}
	if err := i.clean(next); err != nil {
		return err
	}
	trial, err := i.beforeDropin(ctx, o, steps)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if err := i.do(s); err != nil {
			return err
		}
	}
	if err := i.tryDropin(ctx, o, trial); err != nil {
		return err
	}
	return i.writeManifest(then)
}

// clean removes what a run that was killed was about to rename.
func (i *Installer) clean(m manifest) error {
	var errs []error
	for _, e := range m.Files {
		found, err := i.root.Glob(path.Join(path.Dir(e.Path), temporary+"*"))
		errs = append(errs, err)
		for _, name := range found {
			errs = append(errs, i.remove(name))
		}
	}
	return errors.Join(errs...)
}

func (i *Installer) do(s step) (err error) {
	switch {
	case s.writes():
		err = i.write(s.Path, s.file.mode, s.file.content)
	case s.Action == Removed:
		err = i.remove(s.Path)
	}
	if err == nil {
		i.say(s.Change)
	}
	return err
}

// trial is containerd's configuration before our files in it change.
type trial struct {
	before []byte
	former []saved
}

// saved is the text of a file that is put back, nil if there was none.
type saved struct {
	path string
	text []byte
}

// beforeDropin begins a trial, nil if containerd cannot be asked, or if nothing of
// its configuration changes.
func (i *Installer) beforeDropin(ctx context.Context, o Options, steps []step) (*trial, error) {
	t := &trial{}
	for _, s := range steps {
		if !s.file.containerd || !s.writes() {
			continue
		}
		var text []byte
		if s.was != "" {
			var err error
			if text, err = i.root.ReadFile(s.Path); err != nil {
				return nil, err
			}
		}
		t.former = append(t.former, saved{s.Path, text})
	}
	if o.Containerd == "" || len(t.former) == 0 {
		return nil, nil
	}
	var err error
	t.before, err = i.ask(ctx, o)
	return t, err
}

// ask has containerd print what it makes of its configuration.
func (i *Installer) ask(ctx context.Context, o Options) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	return i.root.Run(ctx, nil, o.Containerd, "--config", o.Main, "config", "dump")
}

// tryDropin has containerd read its configuration with our files, and brings back
// what was there before if it does something else than was meant: a node whose
// containerd does not start is worth less than one without the runtime.
func (i *Installer) tryDropin(ctx context.Context, o Options, t *trial) error {
	if t == nil {
		return nil
	}
	after, err := i.ask(ctx, o)
	if err == nil {
		err = dropin.Effect(t.before, after, o.Dropin)
	}
	if err == nil {
		return nil
	}
	errs := []error{fmt.Errorf("the files for containerd are as they were again: %w", err)}
	for _, s := range slices.Backward(t.former) {
		if s.text == nil {
			errs = append(errs, i.remove(s.path))
		} else {
			errs = append(errs, i.write(s.path, 0o644, fromText(s.text)))
		}
	}
	return errors.Join(errs...)
}
