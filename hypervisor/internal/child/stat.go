package child

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// startTime reads field 22 of /proc/<pid>/stat.
func startTime(pid int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	start, err := parseStartTime(stat)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return start, nil
}

// parseStartTime finds field 22. Field 2, the command's name in parentheses, may
// itself hold blanks and parentheses, so fields are counted from the last one.
func parseStartTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("no command name in %q", stat)
	}
	const afterName = 22 - 3 // fields[0] is field 3
	fields := bytes.Fields(stat[end+1:])
	if len(fields) <= afterName {
		return 0, fmt.Errorf("only %d fields in %q", len(fields)+2, stat)
	}
	return strconv.ParseUint(string(fields[afterName]), 10, 64)
}
