package token

import (
	"regexp"
	"strings"
	"testing"
)

var like = []struct {
	name, expression string
	is               func(string) bool
}{
	{"digits", `^[0-9]{1,4}$`, func(s string) bool { return Of(s, 1, 4, Digit) }},
	{"octal", `^[0-7]{3,4}$`, func(s string) bool { return Of(s, 3, 4, Octal) }},
	{"hexadecimal", `^[0-9a-f]{4}$`, func(s string) bool { return Of(s, 4, 4, Hex) }},
	{"letters and digits", `^[A-Za-z0-9]{0,8}$`, func(s string) bool { return Of(s, 0, 8, Alnum) }},
	{"more", `^[A-Za-z0-9_.-]{1,8}$`, func(s string) bool { return Of(s, 1, 8, Class(Alnum).Or("_.-")) }},
	{"number", `^[1-9][0-9]{0,3}$`, func(s string) bool { return Number(s, 4) }},
}

func FuzzWordsAreWhatTheExpressionSays(f *testing.F) {
	for _, s := range []string{"", "0", "7", "8", "0123", "12345", "abcd", "ABCD", "g", "a.b-c_d", "a\n", "\x00", "é", "/", ":", "@", "[", "`", "{", strings.Repeat("1", 9)} {
		f.Add(s)
	}
	compiled := make([]*regexp.Regexp, len(like))
	for i, l := range like {
		compiled[i] = regexp.MustCompile(l.expression)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for i, l := range like {
			if got, want := l.is(s), compiled[i].MatchString(s); got != want {
				t.Errorf("%s: %q is one: %v, and %s says %v", l.name, s, got, l.expression, want)
			}
		}
	})
}
