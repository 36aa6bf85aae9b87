package loopback

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Offsets in struct bpf_sk_lookup (include/uapi/linux/bpf.h). Addresses are in
// network order.
const (
	ctxFamily   = 8
	ctxProtocol = 12
	ctxLocalIP4 = 40
	ctxLocalIP6 = 44
)

// Keys of the map of listeners.
const (
	keyIP4 = iota
	keyIP6
	listeners
)

const skPass = 1 // SK_PASS

// steering sends connections to the loopback of a network namespace to listeners,
// until it is closed or this process ends.
type steering struct {
	sockets *ebpf.Map
	program *ebpf.Program
	link    *link.NetNsLink
}

// steer makes the kernel ask, for each new connection to the loopback of the
// namespace, a program that names the listener of its family
// (Documentation/bpf/prog_sk_lookup.rst). A family without a listener, as on a
// host without IPv6, is left alone.
func steer(namespace *os.File, byFamily [listeners]*net.TCPListener) (_ *steering, err error) {
	s := &steering{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	s.sockets, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "erofsvm_ports", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: listeners,
	})
	if err != nil {
		return nil, fmt.Errorf("make a map of sockets: %w", err)
	}
	for key, l := range byFamily {
		if l == nil {
			continue
		}
		if err := put(s.sockets, uint32(key), l); err != nil {
			return nil, fmt.Errorf("put a listener into a map of sockets: %w", err)
		}
	}
	s.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "erofsvm_ports", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup,
		License: "Apache-2.0", Instructions: instructions(s.sockets.FD()),
	})
	if err != nil {
		return nil, fmt.Errorf("load a program of type sk_lookup: %w", err)
	}
	s.link, err = link.AttachNetNs(int(namespace.Fd()), s.program)
	if err != nil {
		return nil, fmt.Errorf("attach a program to network namespace %s: %w", namespace.Name(), err)
	}
	return s, nil
}

func put(sockets *ebpf.Map, key uint32, l *net.TCPListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = sockets.Put(key, uint64(fd)) })
	return errors.Join(failed, err)
}

// Close ends the steering. It may be called more than once.
func (s *steering) Close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	return errors.Join(append(errs, s.program.Close(), s.sockets.Close())...)
}

// instructions is the program: R6 is its context, R7 the listener.
func instructions(sockets int) asm.Instructions {
	word := func(offset int16) asm.Instruction { return asm.LoadMem(asm.R2, asm.R6, offset, asm.Word) }
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		word(ctxProtocol),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		word(ctxFamily),
		asm.JEq.Imm(asm.R2, unix.AF_INET6, "ip6"),
		asm.JNE.Imm(asm.R2, unix.AF_INET, "pass"),

		// 127.0.0.0/8, with the bytes of the network on top.
		word(ctxLocalIP4),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.RSh.Imm(asm.R2, 24),
		asm.JNE.Imm(asm.R2, 127, "pass"),
		asm.StoreImm(asm.RFP, -4, keyIP4, asm.Word),
		asm.Ja.Label("find"),

		// ::1
		word(ctxLocalIP6).WithSymbol("ip6"),
		asm.JNE.Imm(asm.R2, 0, "pass"),
		word(ctxLocalIP6 + 4),
		asm.JNE.Imm(asm.R2, 0, "pass"),
		word(ctxLocalIP6 + 8),
		asm.JNE.Imm(asm.R2, 0, "pass"),
		word(ctxLocalIP6 + 12),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.JNE.Imm(asm.R2, 1, "pass"),
		asm.StoreImm(asm.RFP, -4, keyIP6, asm.Word),

		asm.LoadMapPtr(asm.R1, sockets).WithSymbol("find"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		// What it answers is of no matter: a socket that cannot be assigned
		// leaves the connection to the usual look-up.
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),

		asm.Mov.Imm(asm.R0, skPass).WithSymbol("pass"),
		asm.Return(),
	}
}
