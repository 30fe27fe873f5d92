// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import "testing"

// part is one test of a group.
type part struct {
	name string
	test func(*testing.T)
}

func run(t *testing.T, parts []part) {
	for _, p := range parts {
		t.Run(p.name, p.test)
	}
}

// TestRunning is what holds while nothing is restarted. Its parts run in
// parallel.
func TestRunning(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	run(t, []part{
		// What takes longest begins first.
		{"faults/the agent is killed at every step", testKilledAtEveryStep},
		{"faults/a malicious issuer is refused", testAMaliciousIssuerIsRefused},
		{"faults/a full volume errs alone", testAFullVolumeErrsAlone},
		{"clients/ghostunnel", testGhostunnel},
		{"clients/spiffe-helper", testSpiffeHelper},
		{"clients/spire-agent", testSpireAgent},
		{"clients/spire-agent administers", testSpireAgentAdministers},
		{"clients/grpc's C core", testGRPCCore},
		{"living/two services speak mTLS across nodes and two rotations", testPairSpeaksAcrossNodesAndRotations},
		{"living/rotation reaches stream and files", testRotationReachesStreamAndFiles},
		{"living/a wrong identity is refused", testAWrongIdentityIsRefused},
		{"mounting/a pod starts with its identity", testPodStartsWithItsIdentity},
		{"mounting/replicas have keys of their own", testReplicasHaveKeysOfTheirOwn},
		{"mounting/a thousand publishes are one", testThousandPublishesAreOne},
		{"mounting/unpublish is idempotent", testUnpublishIsIdempotent},
		{"mounting/invalid volumes are refused by name", testInvalidVolumesAreRefusedByName},
		{"mounting/files belong to the group", testFilesBelongToTheGroup},
		{"mounting/nothing is left of a deleted pod", testNothingIsLeftOfADeletedPod},
		{"deciding/every deviation is denied by name", testEveryDeviationIsDeniedByName},
		{"deciding/an agent speaks for its own pods only", testAnAgentSpeaksForItsOwnPodsOnly},
		{"deciding/others' requests are left alone", testOthersRequestsAreLeftAlone},
		{"deciding/only the approver approves", testOnlyTheApproverApproves},
		{"administering/the administrator lists, watches and renews", testTheAdministratorListsWatchesAndRenews},
		{"administering/no pod reaches the admin socket", testNoPodReachesTheAdminSocket},
		{"pod environment", testPodEnvironment},
		{"speaking/the security header is demanded", testTheSecurityHeaderIsDemanded},
		{"speaking/a proxy gets its secrets", testAProxyGetsItsSecrets},
		{"speaking/JWT is said to be off", testJWTIsSaidToBeOff},
		{"speaking/a pod gets its own identity only", testAPodGetsItsOwnIdentityOnly},
		{"speaking/each socket speaks for its own volume", testEachSocketSpeaksForItsOwnVolume},
		{"speaking/the end of a volume ends its streams", testTheEndOfAVolumeEndsItsStreams},
		{"speaking/the API is on no network", testTheAPIIsOnNoNetwork},
		{"speaking/a debug container sees what the app is told", testADebugContainerSeesWhatTheAppIsTold},
	})
}

// TestRestarts is what holds when parts of Signet, or what it needs, come and
// go. One after the other, on the installation that TestRunning used.
func TestRestarts(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	run(t, []part{
		{"a pod waits for the approver", testAPodWaitsForTheApprover},
		{"a killed agent comes back with the same SVIDs", testAKilledAgentComesBackWithTheSameSVIDs},
		{"a replaced agent serves the same SVIDs", testAReplacedAgentServesTheSameSVIDs},
		{"an agent without API server serves what it has", testAnAgentWithoutAPIServerServesWhatItHas},
		{"junk in the state directory is set aside", testJunkIsSetAside},
		{"two drivers on one node", testTwoDriversOnOneNode},
		{"a roll under fifty pods", testRollUnderFiftyPods},
		{"everything around the agents comes and goes", testPartsComeAndGo},
	})
}

// TestSoak ends what the run began with (startSoak). What comes after it makes
// SVIDs expire, or changes the installation so that they cannot be renewed.
func TestSoak(t *testing.T) { testSoak(t) }

// TestForcedExpiries is what becomes of SVIDs that cannot be renewed.
func TestForcedExpiries(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	run(t, []part{
		{"an expiry is told in time", testAnExpiryIsToldInTime},
		{"a denial is told in its own words", testADenialIsToldInItsOwnWords},
	})
}

// TestRequesterPod re-installs Signet with the overlay for requester "pod".
func TestRequesterPod(t *testing.T) {
	if env.skipped != "" {
		t.Skip(env.skipped)
	}
	reinstallForRequesterPod(t)
	// A group of its own: parallel parts end with it, before the next change.
	t.Run("tokens in the volume context", func(t *testing.T) {
		run(t, []part{
			{"a pod asks for itself", testAPodAsksForItself},
			{"nobody asks for another", testNobodyAsksForAnother},
			{"plain requests are approved unless they smell of SPIFFE", testPlainRequestsAreApproved},
			{"a republish without a usable token hurts nobody", testARepublishNeverHurts},
		})
	})
	t.Run("tokens in secrets", testTokensInSecrets)
}

// TestNothingIsLeft looks, at the end, at what is on the nodes.
func TestNothingIsLeft(t *testing.T) {
	run(t, []part{{"no mount, folder or request of a pod that is gone", testNothingIsLeft}})
}

// TestSecrets looks, at the end, at all that was said.
func TestSecrets(t *testing.T) {
	run(t, []part{{"no key and no token in any log or object", testNoSecretIsWrittenAnywhere}})
}
