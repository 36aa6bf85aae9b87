// Package token checks short words that come from the host, without regular
// expressions: the guest compiles one for the start of a pod that would use it once,
// and where it is emulated that takes longer than what the word is for.
//
// Anybody may call it. It keeps nothing.
package token

import "strings"

// Class is a set of bytes.
type Class func(c byte) bool

// Digit is 0 to 9.
func Digit(c byte) bool { return '0' <= c && c <= '9' }

// Octal is 0 to 7.
func Octal(c byte) bool { return '0' <= c && c <= '7' }

// Hex is a digit in hexadecimal, of which letters are small.
func Hex(c byte) bool { return Digit(c) || 'a' <= c && c <= 'f' }

// Alnum is a letter of ASCII or a digit.
func Alnum(c byte) bool { return Digit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// Or is class and the bytes of more.
func (class Class) Or(more string) Class {
	return func(c byte) bool { return class(c) || strings.IndexByte(more, c) >= 0 }
}

// Of says that s is of least to most bytes, each of them of class.
func Of(s string, least, most int, class Class) bool {
	if len(s) < least || len(s) > most {
		return false
	}
	for i := range len(s) {
		if !class(s[i]) {
			return false
		}
	}
	return true
}

// Number says that s is a decimal number of at most so many digits, without leading
// zeros, and not 0.
func Number(s string, digits int) bool { return Of(s, 1, digits, Digit) && s[0] != '0' }
