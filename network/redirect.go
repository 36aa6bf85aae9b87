package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// priority is that of our filters among those of an interface: behind what
// others put there, which is how it is known again.
const priority = 0xe0f5

// redirect has the kernel send on interface to what interface from receives.
func (n *Namespace) redirect(from, to int) error {
	parent, err := n.hook(from)
	if err != nil {
		return fmt.Errorf("redirect frames (sch_ingress): %w", err)
	}
	attrs := netlink.FilterAttrs{LinkIndex: from, Parent: parent, Priority: priority, Protocol: unix.ETH_P_ALL}
	action := func() []netlink.Action { return []netlink.Action{netlink.NewMirredAction(to)} }
	// Either of the two matches everything; a kernel says ENOENT to the one that
	// it was built without.
	err = n.route.FilterAdd(&netlink.MatchAll{FilterAttrs: attrs, Actions: action()})
	if errors.Is(err, unix.ENOENT) {
		err = n.route.FilterAdd(&netlink.U32{FilterAttrs: attrs, Actions: action()})
	}
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("redirect frames: the kernel has no cls_matchall or cls_u32, or no act_mirred: %w", err)
	}
	if err != nil {
		return fmt.Errorf("redirect frames: %w", err)
	}
	return nil
}

// hook returns what a filter for received frames hangs on, and makes it where
// there is none.
func (n *Namespace) hook(index int) (uint32, error) {
	link := linkAt(index)
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	err := n.route.QdiscAdd(clsact)
	if err == nil {
		return netlink.HANDLE_MIN_INGRESS, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return 0, err
	}
	had, err := n.incoming(link)
	if err != nil {
		return 0, err
	}
	if had == nil {
		return 0, fmt.Errorf("%w: and yet there is none", unix.EEXIST)
	}
	return parentOf(had), nil
}

// incoming returns the qdisc of received frames, nil if there is none.
func (n *Namespace) incoming(link netlink.Link) (netlink.Qdisc, error) {
	list, err := whole(func() ([]netlink.Qdisc, error) { return n.route.QdiscList(link) })
	if err != nil {
		return nil, err
	}
	for _, q := range list {
		if q.Type() == "clsact" || q.Type() == "ingress" {
			return q, nil
		}
	}
	return nil, nil
}

// parentOf is where filters for received frames hang on a qdisc.
func parentOf(q netlink.Qdisc) uint32 {
	if q.Type() == "clsact" {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.MakeHandle(0xffff, 0)
}

// unredirect removes our filter of an interface, and the qdisc if nothing else
// hangs on it.
func (n *Namespace) unredirect(link netlink.Link) error {
	q, err := n.incoming(link)
	if q == nil || err != nil {
		return err
	}
	others, removed := 0, false
	parents := []uint32{parentOf(q)}
	if q.Type() == "clsact" {
		parents = append(parents, netlink.HANDLE_MIN_EGRESS)
	}
	for i, parent := range parents {
		filters, err := whole(func() ([]netlink.Filter, error) { return n.route.FilterList(link, parent) })
		if err != nil {
			return err
		}
		for _, f := range filters {
			if i > 0 || f.Attrs().Priority != priority {
				others++
				continue
			}
			if removed { // the whole priority went at once
				continue
			}
			// No handle stands for all filters of the priority, as u32 has hash
			// tables beside them (net/sched/cls_api.c, tc_del_tfilter).
			all := &netlink.GenericFilter{FilterAttrs: *f.Attrs(), FilterType: f.Type()}
			all.Handle = 0
			if err := n.route.FilterDel(all); err != nil {
				return err
			}
			removed = true
		}
	}
	if others > 0 || !removed {
		return nil
	}
	return n.route.QdiscDel(q)
}

func linkAt(index int) netlink.Link {
	return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// isGone says that an interface went away meanwhile.
func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.Is(err, unix.ENODEV) || errors.As(err, &notFound)
}
