/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose socket a packet is from or for, by the cgroup that made the socket. */
#ifndef IDMESH_CGROUP_H
#define IDMESH_CGROUP_H

#include "maps.h"

#define CGROUP_DEPTH 16 /* levels; one further down is nobody's, and denied */

/* The innermost workload among the cgroups that a socket is in. */
static __always_inline const struct idm_workload *workload_of(struct __sk_buff *skb)
{
	const struct idm_workload *found = NULL;

	for (int level = 1; level <= CGROUP_DEPTH; level++) {
		uint64_t cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		const struct idm_workload *row;

		if (!cgroup)
			break;
		row = bpf_map_lookup_elem(&workloads, &cgroup);
		// A miss: a level of the tree that is no workload's own.
		if (row)
			found = row;
	}
	return found;
}

#endif
