package tally

import (
	"fmt"
	"regexp"
	"strings"
)

// Skip is a test that is skipped.
type Skip struct {
	Name string
	// Out is one that is left out of the run. Otherwise it runs, and skips
	// itself.
	Out bool
	// Emulated is one that is left out where the guest's processor is emulated,
	// and run elsewhere.
	Emulated bool
	Reason   string
}

// List is what one suite skips.
type List []Skip

func (l List) find(name string) (Skip, bool) {
	for _, s := range l {
		if s.Name == name {
			return s, true
		}
	}
	return Skip{}, false
}

// On is the list for a host that emulates the guest's processor, or does not.
func (l List) On(emulated bool) List {
	var list List
	for _, s := range l {
		if s.Emulated && !emulated {
			continue
		}
		s.Out = s.Out || s.Emulated
		list = append(list, s)
	}
	return list
}

// Pattern is what -test.skip takes to leave out what is to be left out, "" if
// nothing is.
func (l List) Pattern() string {
	var all []string
	for _, s := range l {
		if !s.Out {
			continue
		}
		parts := strings.Split(s.Name, "/")
		for i, part := range parts {
			parts[i] = "^" + regexp.QuoteMeta(part) + "$"
		}
		all = append(all, strings.Join(parts, "/"))
	}
	return strings.Join(all, "|")
}

// Words of the second column.
const (
	leftOut = "left out"
	ifSlow  = "left out if emulated"
	itself  = "itself"
)

// ParseLists reads a page of Markdown: for each suite a heading of second level
// with its name, and below it a table of test, how it is skipped ("left out",
// "left out if emulated" or "itself"), and reason. Anything that looks like a row of it but is not, is an
// error.
func ParseLists(page string) (map[string]List, error) {
	lists := map[string]List{}
	suite := ""
	for i, line := range strings.Split(page, "\n") {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			suite = strings.TrimSpace(heading)
			lists[suite] = nil
			continue
		}
		if suite == "" || !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| test ") {
			continue
		}
		s, err := parseRow(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		if _, twice := lists[suite].find(s.Name); twice {
			return nil, fmt.Errorf("line %d: %s is listed twice", i+1, s.Name)
		}
		lists[suite] = append(lists[suite], s)
	}
	return lists, nil
}

func parseRow(line string) (Skip, error) {
	cells := strings.Split(strings.Trim(line, "| "), "|")
	if len(cells) != 3 {
		return Skip{}, fmt.Errorf("%d columns, want 3: test, how, reason", len(cells))
	}
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	s := Skip{Name: strings.Trim(cells[0], "`"), Out: cells[1] == leftOut, Emulated: cells[1] == ifSlow, Reason: cells[2]}
	switch {
	case s.Name == "" || "`"+s.Name+"`" != cells[0]:
		return Skip{}, fmt.Errorf("%q is not the name of a test between backquotes", cells[0])
	case !s.Out && !s.Emulated && cells[1] != itself:
		return Skip{}, fmt.Errorf("%s: %q is none of %q, %q, %q", s.Name, cells[1], leftOut, ifSlow, itself)
	case s.Reason == "":
		return Skip{}, fmt.Errorf("%s has no reason", s.Name)
	}
	return s, nil
}
