/* SPDX-License-Identifier: Apache-2.0 */
/* Who has policies on this host, and whom each selector selects: a snapshot's tables turned about. */
#ifndef IDMESH_DATAPATH_SUBJECTS_H
#define IDMESH_DATAPATH_SUBJECTS_H

#include "engine/internal.h"

/* A kernel policy: a policy of the snapshot, with port names and audit flag of its endpoints. */
struct idm_subjects {
	struct idm_subject_item {
		uint32_t policy;
		uint32_t endpoint; // one of them, to ask the engine with
	} *items;
	uint32_t count;
	uint32_t *numbers; // per endpoint: kernel policy, or IDM_NO_INDEX
};

/* The caller frees items and numbers. */
int idm_subjects_init(struct idm_subjects *subjects, const struct idm_snapshot *snapshot);

/* Identities by selector. */
struct idm_inverse {
	uint32_t selector_count;
	uint32_t *first; // per selector, and one more
	uint32_t *peers; // indexes in IDENTITIES, rising
	uint32_t *strangers; // identities that addresses have, but IDENTITIES has not
	uint32_t stranger_count;
};

int idm_inverse_init(struct idm_inverse *inverse, const struct idm_snapshot *snapshot);
void idm_inverse_deinit(struct idm_inverse *inverse);

static inline const uint32_t *idm_inverse_of(const struct idm_inverse *inverse, uint32_t selector, uint32_t *count)
{
	if (selector >= inverse->selector_count) {
		*count = 0;
		return NULL;
	}
	*count = inverse->first[selector + 1] - inverse->first[selector];
	return inverse->peers + inverse->first[selector];
}

#endif
