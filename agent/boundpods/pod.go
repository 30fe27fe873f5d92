// Copyright The Signet Authors.
// SPDX-License-Identifier: Apache-2.0

package boundpods

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trim keeps of a pod what this package reads, so that a list holds no more while
// it is collected.
func trim(pod *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		},
		Spec: corev1.PodSpec{
			SecurityContext: podUser(pod.Spec.SecurityContext),
			InitContainers:  users(pod.Spec.InitContainers),
			Containers:      users(pod.Spec.Containers),
		},
	}
}

func podUser(c *corev1.PodSecurityContext) *corev1.PodSecurityContext {
	if c == nil {
		return nil
	}
	return &corev1.PodSecurityContext{RunAsUser: c.RunAsUser}
}

func users(containers []corev1.Container) []corev1.Container {
	trimmed := make([]corev1.Container, len(containers))
	for i, c := range containers {
		if c.SecurityContext != nil {
			trimmed[i].SecurityContext = &corev1.SecurityContext{RunAsUser: c.SecurityContext.RunAsUser}
		}
	}
	return trimmed
}

// sharedUser is the user that every container of the pod runs as; nil if there is
// none or it is root, who needs no files of its own.
func sharedUser(pod *corev1.Pod) *int64 {
	var shared *int64
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			user := effectiveUser(pod, &containers[i])
			if user == nil || shared != nil && *shared != *user {
				return nil
			}
			shared = user
		}
	}
	if shared == nil || *shared == 0 {
		return nil
	}
	user := *shared // Lets go of the pod.
	return &user
}

func effectiveUser(pod *corev1.Pod, c *corev1.Container) *int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser
	}
	return nil
}
