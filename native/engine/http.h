/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP sets: which rule of a set a request meets. A request looks at one slot per dim and at the groups without a
 * literal; how many rules a set has does not matter.
 */
#ifndef IDMESH_ENGINE_HTTP_H
#define IDMESH_ENGINE_HTTP_H

#include "internal.h"
#include "rest.h"

/* Header changes by rising rule, so that they do not depend on how groups are filed. */
struct idm_changes {
	struct idm_verdict *verdict;
	uint32_t rules[IDM_CHANGES_MAX];
	bool overflow;
};

/* Order of two dims: by kind, then name. */
int idm_http_dim_order(const struct idm_policies *policies, const struct idm_http_dim *a, const struct idm_http_dim *b);
const struct idm_http_slot *idm_http_slot_find(const struct idm_policies *policies, const struct idm_http_set *set,
					       uint64_t hash);

/*
 * Lowest rule that matches, or IDM_NONE. http->path is canonical; an empty path meets no path rule.
 * path: of http->path, kept from set to set.
 */
uint32_t idm_http_set_match(const struct idm_policies *policies, uint32_t set, const struct idm_http *http,
			    struct rest *path);
/* Add the changes of every rule that matches. */
void idm_http_set_collect(const struct idm_policies *policies, uint32_t set, const struct idm_http *http,
			  struct rest *path, struct idm_changes *changes);

static inline struct rest idm_http_path(const struct idm_http *http)
{
	return (struct rest){.text = (const uint8_t *)http->path.ptr, .size = http->path.size};
}

#endif
