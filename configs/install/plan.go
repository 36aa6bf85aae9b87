package install

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// step is what becomes of one file.
type step struct {
	Change
	file file
	sum  string      // of what is to be there, "" for what is removed
	was  string      // of what is there, "" if nothing is
	mode fs.FileMode // of what is there
}

func (s step) writes() bool { return s.Action == Created || s.Action == Replaced }

// plan decides about every file, and changes none. Its error names all files that
// stand in the way.
func (i *Installer) plan(files []file, had manifest, force bool) ([]step, error) {
	var steps []step
	var conflicts []error
	for _, f := range files {
		s, err := i.decide(f, had, force)
		if err != nil {
			conflicts = append(conflicts, err)
		}
		steps = append(steps, s)
	}
	for _, e := range slices.Backward(had.Files) {
		if slices.ContainsFunc(files, func(f file) bool { return f.path == e.Path }) {
			continue
		}
		s, err := i.decideGone(e, force)
		if err != nil {
			return nil, err
		}
		if s.Path != "" {
			steps = append(steps, s)
		}
	}
	return steps, errors.Join(conflicts...)
}

func (i *Installer) decide(f file, had manifest, force bool) (step, error) {
	s := step{file: f, Change: Change{Path: f.path}}
	var err error
	if s.sum, err = f.content.sum(); err != nil {
		return s, err
	}
	if s.was, s.mode, err = i.sum(f.path); err != nil {
		return s, err
	}
	known, ours := had.find(f.path)
	ours = ours && slices.Contains(known.SHA256, s.was)
	switch {
	case s.was == "":
		s.Action = Created
	case s.was == s.sum && s.mode == f.mode:
		s.Action = Unchanged
	case ours || s.was == s.sum || force && !f.theirs:
		s.Action = Replaced
	case f.theirs:
		s.Action, s.Why = Kept, "it is yours"
	default:
		why := "was not written by erofsvm install"
		if len(known.SHA256) > 0 {
			why = "was changed since erofsvm install wrote it"
		}
		return s, fmt.Errorf("%s %s: %w", f.path, why, ErrConflict)
	}
	return s, nil
}

// decideGone is about a file that is installed, and is not to be any more.
func (i *Installer) decideGone(e entry, force bool) (step, error) {
	was, _, err := i.sum(e.Path)
	switch {
	case err != nil && !force:
		return step{}, err
	case err == nil && was == "":
		return step{}, nil
	case slices.Contains(e.SHA256, was) || force:
		return step{Change: Change{Action: Removed, Path: e.Path}, was: was}, nil
	}
	return step{Change: Change{Action: Kept, Path: e.Path, Why: "it was changed since it was installed"}, was: was}, nil
}
