package figures

// Kind is how a table is drawn.
type Kind string

// Bars has a bar for each row, at the median, with the range of its samples. Lines
// has a line for each name of a Point. Spans has each row from where it begins to
// where it ends, below one another: what happens one after the other, and what at
// the same time.
const (
	Bars  Kind = "bars"
	Lines Kind = "lines"
	Spans Kind = "spans"
)

// Chart says how a table is drawn.
type Chart struct {
	Kind Kind `json:"kind"`
	// Name is that of the file, without its ending: lower-case letters, digits and
	// dashes, and no other chart's of any report.
	Name string `json:"name"`
	X    string `json:"x,omitempty"` // what the numbers of a Lines are
}

// Point is where a row lies in a chart of lines.
type Point struct {
	Line string  `json:"line"`
	X    float64 `json:"x"`
}

// Draw has the table drawn, and returns it.
func (t *Table) Draw(kind Kind, name, x string) *Table {
	t.Chart = &Chart{Kind: kind, Name: name, X: x}
	return t
}

// At places the row in a chart of lines, and returns it.
func (r *Row) At(line string, x float64) *Row {
	r.Point = &Point{Line: line, X: x}
	return r
}

// AddSpan adds a sample that begins somewhere.
func (r *Row) AddSpan(begin, length float64) {
	r.Begins = append(r.Begins, begin)
	r.Add(length)
}
