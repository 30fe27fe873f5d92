// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
)

// Keys that kubelet puts into the volume context (or, for the tokens, into the secrets).
const (
	keyPrefix         = "csi.storage.k8s.io/"
	keyEphemeral      = keyPrefix + "ephemeral"
	keyPodName        = keyPrefix + "pod.name"
	keyPodNamespace   = keyPrefix + "pod.namespace"
	keyPodUID         = keyPrefix + "pod.uid"
	keyServiceAccount = keyPrefix + "serviceAccount.name"
	keyTokens         = keyPrefix + "serviceAccount.tokens"
)

const (
	// maxGID is the last real group. 4294967295 is (gid_t)-1: chown(2) takes it for "leave as it is".
	maxGID = 1<<32 - 2
	// maxUID is the last real user, for the same reason.
	maxUID = maxGID
	// maxPath keeps paths below PATH_MAX with room for what we append.
	maxPath = 3800
)

var (
	volumeIDPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	namespacePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	objectNamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	podUIDPattern     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?$`)
	driverNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$`)
	// kubeletTarget is kubelet's layout: <root>/pods/<pod UID>/volumes/kubernetes.io~csi/<name>/mount.
	kubeletTarget = regexp.MustCompile(`/pods/([^/]+)/volumes/kubernetes\.io~csi/[^/]+/mount$`)
	// redundantMountFlags ask for what every volume has anyway.
	redundantMountFlags = []string{"ro", "nosuid", "nodev", "noexec"}
)

func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%w: %s %s", ErrInvalid, field, fmt.Sprintf(format, args...))
}

// validator checks requests for one driver.
type validator struct {
	driverName string
	storeRoot  string // no target may lie in here, or contain it
}

// publish turns a request into a Volume. Every error wraps ErrInvalid, names the field in the words of
// whoever can change it, and never quotes a token.
func (c validator) publish(r *csipb.NodePublishVolumeRequest) (Volume, error) {
	v := Volume{ID: r.GetVolumeId(), TargetPath: r.GetTargetPath()}
	if err := checkVolumeID(v.ID); err != nil {
		return Volume{}, err
	}
	if err := c.checkTarget(v.TargetPath); err != nil {
		return Volume{}, err
	}
	if err := checkCapability(r.GetVolumeCapability()); err != nil {
		return Volume{}, err
	}
	attributes := r.GetVolumeContext()
	if err := checkPodInfoPresent(attributes); err != nil {
		return Volume{}, err
	}
	if got := attributes[keyEphemeral]; got != "true" {
		return Volume{}, invalid(keyEphemeral, "must be \"true\" (an inline volume, pod.spec.volumes[].csi), not %q", got)
	}
	if !r.GetReadonly() {
		return Volume{}, invalid("pod.spec.volumes[].csi.readOnly", "must be set to 'true'")
	}
	var err error
	if v.Pod, err = podOf(attributes, v.TargetPath); err != nil {
		return Volume{}, err
	}
	if err := c.attributes(&v, attributes); err != nil {
		return Volume{}, err
	}
	if v.FSGroup, err = fsGroup(v.FSGroup, r.GetVolumeCapability().GetMount().GetVolumeMountGroup()); err != nil {
		return Volume{}, err
	}
	v.Token, err = tokenOf(r.GetSecrets(), attributes)
	return v, err
}

// unpublish checks a request to take a volume away.
func (c validator) unpublish(r *csipb.NodeUnpublishVolumeRequest) error {
	if err := checkVolumeID(r.GetVolumeId()); err != nil {
		return err
	}
	return c.checkTarget(r.GetTargetPath())
}

func checkVolumeID(id string) error {
	if id == "" {
		return invalid("volume_id", "is missing")
	}
	if !volumeIDPattern.MatchString(id) {
		return invalid("volume_id", "must be one path segment of at most 128 letters, digits, '.', '_' and '-', not %q", id)
	}
	return nil
}

func (c validator) checkTarget(target string) error {
	const field = "target_path"
	switch {
	case target == "":
		return invalid(field, "is missing")
	case len(target) > maxPath:
		return invalid(field, "is longer than %d bytes", maxPath)
	case strings.ContainsRune(target, 0):
		return invalid(field, "contains a NUL byte")
	case !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/":
		return invalid(field, "must be absolute and without '.', '..' or double slashes, not %q", target)
	case c.storeRoot != "" && (within(target, c.storeRoot) || within(c.storeRoot, target)):
		return invalid(field, "%q overlaps the driver's own state in %s", target, c.storeRoot)
	}
	return nil
}

// within reports whether path is dir or lies below it; both are clean.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func checkCapability(vc *csipb.VolumeCapability) error {
	if vc == nil {
		return invalid("volume_capability", "is missing")
	}
	if vc.GetBlock() != nil {
		return invalid("volume_capability.block", "is not supported: an identity is files and a socket, use a mounted volume")
	}
	m := vc.GetMount()
	if m == nil {
		return invalid("volume_capability.mount", "is missing")
	}
	if t := m.GetFsType(); t != "" && t != "tmpfs" {
		return invalid("pod.spec.volumes[].csi.fsType", "must be empty or \"tmpfs\", not %q", t)
	}
	for _, flag := range m.GetMountFlags() {
		if !slices.Contains(redundantMountFlags, flag) {
			return invalid("volume_capability.mount.mount_flags", "contains %q: mount options cannot be chosen for this driver", flag)
		}
	}
	switch mode := vc.GetAccessMode().GetMode(); mode {
	case csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, // what kubelet sends for every inline volume
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return nil
	default:
		return invalid("volume_capability.access_mode", "must be one of the SINGLE_NODE modes, not %s: a volume belongs to one pod", mode)
	}
}

func checkPodInfoPresent(attributes map[string]string) error {
	for _, key := range []string{keyPodName, keyPodNamespace, keyPodUID, keyServiceAccount} {
		if attributes[key] == "" {
			return invalid("volume_context["+key+"]", "is missing: the CSIDriver object needs podInfoOnMount: true")
		}
	}
	return nil
}

// podOf reads the pod from the volume context.
//
// With podInfoOnMount kubelet's values replace whatever the pod's author wrote under the same keys.
// Without it the author's would come through unchanged and name any pod at all. The target path cannot be
// written by the author, and in kubelet's layout it holds the pod's UID: the two must agree.
func podOf(attributes map[string]string, target string) (Pod, error) {
	p := Pod{
		Namespace:      attributes[keyPodNamespace],
		Name:           attributes[keyPodName],
		UID:            attributes[keyPodUID],
		ServiceAccount: attributes[keyServiceAccount],
	}
	for _, f := range []struct {
		key, value string
		pattern    *regexp.Regexp
	}{
		{keyPodNamespace, p.Namespace, namespacePattern},
		{keyPodName, p.Name, objectNamePattern},
		{keyPodUID, p.UID, podUIDPattern},
		{keyServiceAccount, p.ServiceAccount, objectNamePattern},
	} {
		if !f.pattern.MatchString(f.value) {
			return Pod{}, invalid("volume_context["+f.key+"]", "is not a valid name: %q", f.value)
		}
	}
	if m := kubeletTarget.FindStringSubmatch(target); m != nil && m[1] != p.UID {
		return Pod{}, invalid("volume_context["+keyPodUID+"]", "is %q but target_path belongs to pod %q: the CSIDriver object needs podInfoOnMount: true", p.UID, m[1])
	}
	return p, nil
}

// fsGroup takes the attribute, which has been read, before the pod's fsGroup (VOLUME_MOUNT_GROUP).
func fsGroup(attribute *int64, mountGroup string) (*int64, error) {
	if attribute != nil || mountGroup == "" {
		return attribute, nil
	}
	gid, err := strconv.ParseInt(mountGroup, 10, 64)
	if err != nil || gid < 0 || gid > maxGID {
		return nil, invalid("volume_capability.mount.volume_mount_group", "must be a group ID from 0 to %d, not %q", int64(maxGID), mountGroup)
	}
	return &gid, nil
}

// tokenOf finds the pod's token for the API server's own audience, which kubelet files under the empty
// audience. With serviceAccountTokenInSecrets it comes in the secrets, else in the volume context.
func tokenOf(secrets, attributes map[string]string) (Token, error) {
	field, raw := "secrets["+keyTokens+"]", secrets[keyTokens]
	if raw == "" {
		field, raw = "volume_context["+keyTokens+"]", attributes[keyTokens]
	}
	if raw == "" {
		return Token{}, nil
	}
	var byAudience map[string]struct {
		Token               string    `json:"token"`
		ExpirationTimestamp time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(raw), &byAudience); err != nil {
		// err may quote the input, which holds tokens.
		return Token{}, invalid(field, "is not the JSON object that kubelet sends")
	}
	t := byAudience[""]
	if strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return Token{}, invalid(field, "holds a token with characters that no token has")
	}
	return NewToken(t.Token, t.ExpirationTimestamp), nil
}
