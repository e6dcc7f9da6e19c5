/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot as the kernel looks it up: by identity instead of by selector, policies of this host only. */
#ifndef IDMESH_DATAPATH_EXPAND_H
#define IDMESH_DATAPATH_EXPAND_H

#include "engine/internal.h"
#include "lists.h"

struct idm_expanded_side {
	struct idm_side_row row; // any is filled in once the lists have places
	uint32_t any;            // list
};

struct idm_expanded_peer {
	struct idm_peer_key key;
	uint32_t list;
};

struct idm_expansion {
	uint32_t *policies; // per endpoint of the snapshot: kernel policy or IDM_NO_INDEX; owned
	uint32_t policy_count;
	struct idm_expanded_side *sides; // two per policy
	struct idm_expanded_peer *peers;
	uint32_t peer_count, peer_room;
	struct idm_wanted_lists lists;
};

/* Expand policies of all endpoints of this host. 0 or -ENOMEM. */
int idm_expand(const struct idm_snapshot *snapshot, struct idm_expansion *ret);
void idm_expansion_deinit(struct idm_expansion *expansion);

#endif
