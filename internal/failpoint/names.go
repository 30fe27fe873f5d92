// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package failpoint

import "strings"

// Folder is the environment variable that names the folder with armed points.
const Folder = "SIGNET_FAILPOINTS"

// FileName is the name of the file that arms a point.
func FileName(point string) string { return strings.ReplaceAll(point, "/", ".") }

// Names are the points, in the order of a volume's life.
var Names = []string{
	// A volume's storage is made (csi).
	"volume/directory-made",
	"volume/mounted",
	"volume/pod-part-made",
	"volume/private-part-made",
	"private/temporary-written",
	"volume/owner-written",
	"prepare/created",
	"prepare/remembered",
	"socket/bound",
	"socket/in-place",
	"prepare/served",

	// An SVID is obtained (agent/workload, agent/issue/certmanager).
	"issue/key-made",
	"attempt/kept",
	"request/before-create",
	"request/created",
	"request/issued",
	"issue/verified",

	// It is stored and shown (agent, csi). An attempt is replaced as a state is.
	"state/replaced",
	"store/state-written",
	"files/leftovers-removed",
	"files/one-written",
	"files/all-written",
	"files/name-linked",
	"files/named",
	"files/next-linked",
	"files/swapped",
	"store/files-written",
	"attempt/dropped",
	"push/done",
	"request/before-delete",
	"request/deleted",

	// The volume appears in the pod.
	"publish/answered",
	"bind/target-made",
	"bind/mounted",

	// The agent takes up what the one before left.
	"restore/recovered",

	// The volume is taken away.
	"unpublish/called",
	"remove/detached",
	"remove/ended",
	"wipe/overwritten",
	"wipe/emptied",
	"remove/copies-unmounted",
	"remove/unmounted",
	"remove/directory-removed",
	"unpublish/identity-ended",
	"unpublish/target-removed",
}
