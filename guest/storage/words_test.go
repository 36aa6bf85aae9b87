package storage

import (
	"regexp"
	"testing"
)

// What passes, as regular expressions have it.
var (
	directiveLike = regexp.MustCompile(`^\{\{ ?mount ([0-9]{1,3}) ?\}\}(/[^:\x00]+)(?::([0-7]{3,4})(?::([0-9]{1,10}):([0-9]{1,10}))?)?$`)
	idLike        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	rootHashLike  = regexp.MustCompile(`^([0-9a-f]{64}|[0-9a-f]{128})$`)
	optionLike    = map[string]*regexp.Regexp{
		"ext4": regexp.MustCompile(`^(sync|async|dirsync|lazytime|nolazytime|data=(ordered|writeback|journal)|` +
			`commit=[0-9]{1,4}|barrier|nobarrier|barrier=[01]|discard|nodiscard|delalloc|nodelalloc|` +
			`errors=(remount-ro|continue)|user_xattr|nouser_xattr|acl|noacl|init_itable|noinit_itable|init_itable=[0-9]{1,4})$`),
		"erofs":     regexp.MustCompile(`^(lazytime|nolazytime|user_xattr|nouser_xattr|acl|noacl|cache_strategy=(disabled|readahead|readaround))$`),
		"hugetlbfs": regexp.MustCompile(`^(pagesize=[1-9][0-9]{0,11})$`),
		"tmpfs":     regexp.MustCompile(`^(size=[1-9][0-9]{0,17}|nr_inodes=[1-9][0-9]{0,17}|mode=[0-7]{3,4}|inode64)$`),
		"proc":      regexp.MustCompile(`^\b\B$`), // nothing
	}
)

func FuzzWordsOfAStorageAreWhatTheExpressionsSay(f *testing.F) {
	for _, s := range []string{
		"{{ mount 1 }}/a", "{{mount 12}}/a/b:0755", "{{ mount 1}}/a:755:0:4294967295", "{{ mount 1 }}/a:", "{{ mount 1 }}/a:755:",
		"{{ mount 1 }}/a:755:1", "{{ mount 1 }}/a:755:1:", "{{ mount 1 }}/a:755:1:2:3", "{{  mount 1 }}/a", "{{ mount 1  }}/a", "{{ mount 1234 }}/a",
		"{{ mount 1 }}}/a", "{{ mount  }}/a", "{{ mount 1 }}a", "{{ mount 1 }}/", "{{ mount 1 }}/\x00", "{{ mount 1 }}/\xff\n", "{{ mount 1 }/a", "mount 1",
		"sync", "barrier", "barrier=1", "barrier=", "barrier=2", "data=ordered", "data", "commit=12345", "init_itable", "init_itable=1", "errors=panic", "errors=continue",
		"cache_strategy=readahead", "cache_strategy", "acl=", "pagesize=2097152", "pagesize=0", "size=1", "size", "mode=0755", "mode=8", "inode64", "inode64=", "nr_inodes=010", "=", "",
		"a", "-a", "a.b_c-d", "a b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := directiveLike.FindStringSubmatch(s)
		d, ok := readDirective(s)
		if ok != (want != nil) {
			t.Errorf("%q is a directive: %v", s, ok)
		} else if ok && (d != directive{want[1], want[2], want[3], want[4], want[5]}) {
			t.Errorf("%q is %q, want %q", s, d, want[1:])
		}
		if is := CheckID(s) == nil; is != idLike.MatchString(s) {
			t.Errorf("%q is an id: %v", s, is)
		}
		if is := isRootHash(s); is != rootHashLike.MatchString(s) {
			t.Errorf("%q is a root hash: %v", s, is)
		}
		for fstype, expression := range optionLike {
			if passes := superOption(fstype, s); passes != expression.MatchString(s) {
				t.Errorf("option %q passes for %s: %v", s, fstype, passes)
			}
		}
	})
}
