package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/erofsvm/erofsvm/rootfs"
	"github.com/erofsvm/erofsvm/test/bench/cputime"
	"github.com/erofsvm/erofsvm/test/bench/disks/deal"
	"github.com/erofsvm/erofsvm/test/bench/figures"
	"github.com/erofsvm/erofsvm/test/truth/layers"
	"github.com/erofsvm/erofsvm/test/truth/vm"
)

// lowers over which the tree of the walks is dealt out.
const lowers = 100

// tree is one way in which the walks have their tree.
type tree struct {
	name    string
	against string
	mounts  []layers.Lower
}

// walks measures containers of Debian's base in one layer, in many that are
// merged, and in many partitions: what it takes to make them, and what to find
// and look at every path in them.
func (g *guest) walks(ctx context.Context) error {
	trees, err := g.trees(ctx)
	if err != nil {
		return err
	}
	image, err := g.writable(ctx, "walk.img", 32<<20)
	if err != nil {
		return err
	}
	t := &tables{report: &g.report, trees: trees, byName: map[string]*figures.Table{}}
	if err := g.creates(ctx, t, image); err != nil {
		return err
	}
	return g.walkInTurn(ctx, t, image)
}

// inTurn calls do for each tree in each of the rounds, and before that once for
// what warms up. The order turns around from round to round.
func inTurn(trees []tree, rounds int, do func(i int, counts bool) error) error {
	for round := range rounds + 1 {
		for k := range trees {
			i := k
			if round%2 == 1 {
				i = len(trees) - 1 - k
			}
			if err := do(i, round > 0); err != nil {
				return fmt.Errorf("%s: %w", trees[i].name, err)
			}
		}
	}
	return nil
}

// creates makes and deletes a container of each tree.
func (g *guest) creates(ctx context.Context, t *tables, image string) error {
	return inTurn(t.trees, g.runs, func(i int, counts bool) error {
		began, err := g.cost()
		if err != nil {
			return err
		}
		c, err := g.walker(ctx, t.trees[i], image)
		if err != nil {
			return err
		}
		took, err := g.since(began)
		var steps []time.Duration
		if err == nil {
			steps, err = g.steps(ctx, c)
		}
		if err := errors.Join(err, release(ctx, c)); err != nil || !counts {
			return err
		}
		t.add("create of a container, the VM running", i, took.clock)
		t.add("the same, QEMU's processor time", i, took.processor)
		t.add("of the create, until the guest has the disks", i, steps[0])
		t.add("of the create, the mounts in the guest", i, steps[1])
		return nil
	})
}

// walker makes a container of a tree that walks when it is told to.
func (g *guest) walker(ctx context.Context, t tree, image string) (*vm.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	return g.vm.Create(ctx, layers.Active(layers.Upper{Image: image}, t.mounts...), "/"+inGuestName, "walk", "/")
}

// steps is what the agent says in its log of a create: how long it took until the
// guest had the disks, and how long the mounts took.
func (g *guest) steps(ctx context.Context, c *vm.Container) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	line, err := g.vm.WaitLog(ctx, "guest: container created", "id="+c.ID+" ")
	if err != nil {
		return nil, err
	}
	return stepsOf(line)
}

var stepFields = [...]*regexp.Regexp{regexp.MustCompile(`disks_took=(\S+)`), regexp.MustCompile(`mounts_took=(\S+)`)}

func stepsOf(line string) ([]time.Duration, error) {
	var steps []time.Duration
	for _, field := range stepFields {
		said := field.FindStringSubmatch(line)
		if said == nil {
			return nil, fmt.Errorf("the agent's log has no %s: %s", field, line)
		}
		nanoseconds, err := strconv.ParseFloat(said[1], 64)
		if err != nil {
			return nil, fmt.Errorf("the agent's log: %w", err)
		}
		steps = append(steps, time.Duration(nanoseconds))
	}
	return steps, nil
}

// round is what a container is told to do each time it is its turn, and under
// which title that is told, if it is.
var round = []struct{ command, title string }{
	{"forget", ""},
	{"find", "find over the tree, cold"},
	{"forget", ""},
	{"stat", "stat over the tree, cold"},
	{"find", "find over the tree, warm"},
	{"stat", "stat over the tree, warm"},
}

// walkInTurn has a container of each tree, all in the same VM, and lets them walk
// in turn.
func (g *guest) walkInTurn(ctx context.Context, t *tables, image string) (err error) {
	var held []*vm.Container
	defer func() { err = errors.Join(err, release(ctx, held...)) }()
	for i, tree := range t.trees {
		// One each, as they are there at the same time.
		c, err := g.startWalker(ctx, tree, image, fmt.Sprintf("walker-%d", i))
		if err != nil {
			return fmt.Errorf("%s: %w", tree.name, err)
		}
		held = append(held, c)
	}
	told := make([]int, len(held)) // lines of each
	paths := ""
	err = inTurn(t.trees, often*g.runs, func(i int, counts bool) error {
		for _, r := range round {
			found, took, err := g.walk(ctx, held[i], r.command, told[i])
			if err != nil {
				return err
			}
			told[i]++
			if r.command == "find" && paths == "" {
				paths = found
			}
			if r.command == "find" && found != paths {
				return fmt.Errorf("%s paths, and another tree has %s", found, paths)
			}
			if counts && r.title != "" {
				t.add(r.title, i, took.clock)
				t.add(r.title+", QEMU's processor time", i, took.processor)
			}
		}
		return nil
	})
	g.report.Tables[len(g.report.Tables)-1].Note("A tree has %s paths. Cold: the guest has nothing of it in memory, the host has all.", paths)
	return err
}

func (g *guest) startWalker(ctx context.Context, t tree, image, dir string) (*vm.Container, error) {
	copied, err := g.copyOf(image, dir)
	if err != nil {
		return nil, err
	}
	c, err := g.walker(ctx, t, copied)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, release(ctx, c))
	}
	return c, nil
}

// walk tells a container what to do, waits for its line n, which says that it has
// done it, and returns the number of paths of which it speaks.
func (g *guest) walk(ctx context.Context, c *vm.Container, command string, n int) (paths string, took cost, err error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	began, err := g.cost()
	if err != nil {
		return "", cost{}, err
	}
	if err := c.Say(command); err != nil {
		return "", cost{}, err
	}
	line, err := c.WaitLine(ctx, n)
	if err != nil {
		return "", cost{}, err
	}
	if took, err = g.since(began); err != nil {
		return "", cost{}, err
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != command {
		return "", cost{}, fmt.Errorf("a container that was told to %s says %q", command, line)
	}
	// The guest's clock, without the way to the host and back.
	microseconds, err := strconv.ParseInt(words[2], 10, 64)
	took.clock = time.Duration(microseconds) * time.Microsecond
	return words[1], took, err
}

// cost is a time, or two since another one: on the clock, and of processors that
// QEMU had. The second hardly depends on what else the machine does.
type cost struct{ clock, processor time.Duration }

// cost is what there was until now.
func (g *guest) cost() (cost, error) {
	processor, err := cputime.Of(g.vm.Pid())
	return cost{time.Duration(time.Now().UnixNano()), processor}, err
}

func (g *guest) since(began cost) (cost, error) {
	now, err := g.cost()
	return cost{now.clock - began.clock, now.processor - began.processor}, err
}

// tables are those of the walks, each with a row for every tree.
type tables struct {
	report *figures.Report
	trees  []tree
	byName map[string]*figures.Table
}

// add adds a sample of tree i.
func (t *tables) add(title string, i int, took time.Duration) {
	table := t.byName[title]
	if table == nil {
		table = t.report.Table(title, "ms")
		t.byName[title] = table
		for _, tree := range t.trees {
			table.Row(tree.name, tree.against)
		}
	}
	table.Row(t.trees[i].name, "").Add(milliseconds(took))
}

// trees makes the layers.
func (g *guest) trees(ctx context.Context) ([]tree, error) {
	tars, err := deal.Tar(bytes.NewReader(g.base), lowers)
	if err != nil {
		return nil, err
	}
	many, err := g.plain(ctx, "dealt", tars)
	if err != nil {
		return nil, err
	}
	whole, err := g.plain(ctx, "whole", [][]byte{g.base})
	if err != nil {
		return nil, err
	}
	apart, err := g.apart(ctx, "dealt-index.erofs", layers.Lowers(many...), 0, tars[0])
	if err != nil {
		return nil, err
	}
	merged := fmt.Sprintf("%d layers merged, 1 lower", lowers)
	trees := []tree{
		{"1 layer, raw", merged, layers.Lowers(whole...)},
		{merged, "", layers.Lowers(many...)},
		{fmt.Sprintf("%d layers partitioned, %d lowers", lowers, lowers), merged, apart},
	}
	for i, want := range []rootfs.Strategy{rootfs.StrategyRaw, rootfs.StrategyMerged, rootfs.StrategyPartitioned} {
		if _, err := g.layersDisk(ctx, layers.View(trees[i].mounts...), want); err != nil {
			return nil, fmt.Errorf("%s: %w", trees[i].name, err)
		}
	}
	return trees, nil
}
