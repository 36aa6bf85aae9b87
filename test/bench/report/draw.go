package main

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
)

// Sizes of drawings: wide enough for the names of rows, and as high as their number
// asks for.
const (
	width     = 22 * vg.Centimeter
	rowHeight = 0.8 * vg.Centimeter
	margins   = 2.5 * vg.Centimeter
	lines     = 11 * vg.Centimeter
	thickness = 0.45 * vg.Centimeter
)

// Where the font is missing by which the drawing was laid out, one that is as wide
// must stand in, or names run into their bars.
const (
	measuredFont  = "font-family:Liberation Sans"
	metricAliases = ",Arial,Helvetica,sans-serif"
)

// draw makes an SVG of a table.
func draw(t table) ([]byte, error) {
	p := plot.New()
	p.Title.Text = t.Title
	p.Title.Padding = 0.3 * vg.Centimeter
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.X.Tick.Label, &p.Y.Label.TextStyle, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	p.Add(plotter.NewGrid())
	switch t.Chart.Kind {
	case "bars":
		return bars(p, t)
	case "lines":
		return curves(p, t)
	case "spans":
		return spans(p, t)
	}
	return nil, fmt.Errorf("a chart of kind %q is unknown", t.Chart.Kind)
}

// bars are horizontal, from the first row at the top to the last: their names are
// long.
func bars(p *plot.Plot, t table) ([]byte, error) {
	rows := measured(t.Rows)
	var names []string
	var medians plotter.Values
	var ranges ranges
	for i, r := range slices.Backward(rows) {
		least, median, most := spread(r.Samples)
		y := float64(len(rows) - 1 - i)
		names = append(names, r.Name)
		medians = append(medians, median)
		ranges.XYs = append(ranges.XYs, plotter.XY{X: median, Y: y})
		ranges.XErrors = append(ranges.XErrors, struct{ Low, High float64 }{median - least, most - median})
	}
	if len(rows) == 0 {
		return nil, errNothing
	}
	b, err := plotter.NewBarChart(medians, thickness)
	if err != nil {
		return nil, err
	}
	b.Horizontal, b.Color, b.LineStyle.Width = true, plotutil.Color(2), 0
	whiskers, err := plotter.NewXErrorBars(ranges)
	if err != nil {
		return nil, err
	}
	p.Add(b, whiskers)
	p.NominalY(names...)
	p.X.Min = 0
	p.X.Label.Text = t.Unit + ", median and range"
	return svg(p, height(len(rows)))
}

// ranges are points with what is below and above them.
type ranges struct {
	plotter.XYs
	plotter.XErrors
}

// curves are lines through the medians.
func curves(p *plot.Plot, t table) ([]byte, error) {
	var names []string
	points := map[string]plotter.XYs{}
	for _, r := range measured(t.Rows) {
		if r.Point == nil {
			continue
		}
		if points[r.Point.Line] == nil {
			names = append(names, r.Point.Line)
		}
		_, median, _ := spread(r.Samples)
		points[r.Point.Line] = append(points[r.Point.Line], plotter.XY{X: r.Point.X, Y: median})
	}
	if len(names) == 0 {
		return nil, errNothing
	}
	for i, name := range names {
		line, dots, err := plotter.NewLinePoints(points[name])
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
		p.Add(line, dots)
		p.Legend.Add(name, line, dots)
	}
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs = true, true, 0.3*vg.Centimeter
	p.X.Label.Text, p.Y.Label.Text = t.Chart.X, t.Unit
	p.X.Min, p.Y.Min = 0, 0
	return svg(p, lines)
}

// spans are a waterfall: each row from the median of its beginnings, as long as its
// median, the first that begins at the top.
func spans(p *plot.Plot, t table) ([]byte, error) {
	rows := slices.DeleteFunc(measured(t.Rows), func(r row) bool { return len(r.Begins) == 0 })
	if len(rows) == 0 {
		return nil, errNothing
	}
	begin := func(r row) float64 { _, median, _ := spread(r.Begins); return median }
	slices.SortStableFunc(rows, func(x, y row) int {
		if begin(x) < begin(y) {
			return 1 // the last is drawn at the bottom, where an axis begins
		}
		if begin(x) > begin(y) {
			return -1
		}
		return 0
	})
	names := make([]string, len(rows))
	for i, r := range rows {
		_, long, _ := spread(r.Samples)
		names[i] = r.Name + ", " + strconv.FormatFloat(long, 'f', 1, 64)
		from, to, y := begin(r), begin(r)+long, float64(i)
		const half = 0.3
		box, err := plotter.NewPolygon(plotter.XYs{{X: from, Y: y - half}, {X: to, Y: y - half}, {X: to, Y: y + half}, {X: from, Y: y + half}})
		if err != nil {
			return nil, err
		}
		box.Color, box.LineStyle.Width, box.LineStyle.Color = plotutil.Color(2), 0.5, color.Black
		p.Add(box)
	}
	p.NominalY(names...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(rows))-0.4
	p.X.Min = 0
	p.X.Label.Text = t.Unit + ", medians"
	return svg(p, height(len(rows)))
}

var errNothing = fmt.Errorf("the table has no samples to draw")

// measured are the rows with samples.
func measured(rows []row) []row {
	return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return len(r.Samples) == 0 })
}

// spread is that of test/bench/figures.
func spread(samples []float64) (least, median, most float64) {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return sorted[0], (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[n-1]
}

func height(rows int) vg.Length { return margins + vg.Length(rows)*rowHeight }

func svg(p *plot.Plot, height vg.Length) ([]byte, error) {
	w, err := p.WriterTo(width, height, "svg")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if _, err = w.WriteTo(&b); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte(measuredFont), []byte(measuredFont+metricAliases)), nil
}
