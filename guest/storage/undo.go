package storage

import "fmt"

// undo is what there is to do to take something down, the first step of that
// last.
type undo []undoStep

type undoStep struct {
	what string
	do   func() error
}

func (u *undo) push(what string, do func() error) { *u = append(*u, undoStep{what, do}) }

// run takes everything down. It stops at the first step that fails, since those
// below depend on it, names it, and can be called again to go on from there.
func (u *undo) run() error {
	for len(*u) > 0 {
		last := (*u)[len(*u)-1]
		if err := last.do(); err != nil {
			return fmt.Errorf("%s: %w", last.what, err)
		}
		*u = (*u)[:len(*u)-1]
	}
	return nil
}
