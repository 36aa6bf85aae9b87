package cgstat

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

// Network reads the interfaces of a file like /proc/net/dev, whose columns are
// those of dev_seq_show in net/core/net-procfs.c.
func Network(file io.Reader) ([]*pb.NetworkStats, error) {
	var out []*pb.NetworkStats
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// An interface's name may have a colon in it; what follows has none.
		at := strings.LastIndex(lines.Text(), ":")
		if at < 0 {
			continue // one of the two lines of headings
		}
		var n [16]uint64
		columns := strings.Fields(lines.Text()[at+1:])
		for i := range n {
			var err error
			if i >= len(columns) {
				return nil, fmt.Errorf("statistics of the network: %d columns, want %d: %.80q", len(columns), len(n), lines.Text())
			}
			if n[i], err = strconv.ParseUint(columns[i], 10, 64); err != nil {
				return nil, fmt.Errorf("statistics of the network: %w", err)
			}
		}
		out = append(out, &pb.NetworkStats{
			Name:    strings.TrimSpace(lines.Text()[:at]),
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return out, lines.Err()
}
