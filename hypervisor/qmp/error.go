package qmp

import (
	"errors"
	"fmt"
)

// Class is QEMU's class of an error (qapi/error.json, QapiErrorClass). What QEMU
// says beside it is for people and differs between versions.
type Class string

const (
	ClassGeneric         Class = "GenericError"
	ClassCommandNotFound Class = "CommandNotFound"
	ClassDeviceNotActive Class = "DeviceNotActive"
	ClassDeviceNotFound  Class = "DeviceNotFound"
	ClassKVMMissingCap   Class = "KVMMissingCap"
)

// Error is an error that QEMU answered to a command.
type Error struct {
	Command string
	Class   Class
	Desc    string // QEMU's words; can name files of the host
}

func (e *Error) Error() string {
	return fmt.Sprintf("QMP %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// IsClass says whether err is an error that QEMU answered, of the given class.
func IsClass(err error, class Class) bool {
	var e *Error
	return errors.As(err, &e) && e.Class == class
}
