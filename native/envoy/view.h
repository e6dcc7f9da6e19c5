/* SPDX-License-Identifier: Apache-2.0 */
/* Reads of a validated snapshot for what a verdict alone does not say: names, flags, where a rule was written. */
#ifndef IDMESH_ENVOY_VIEW_H
#define IDMESH_ENVOY_VIEW_H

#include <stdbool.h>

#include "idmesh/engine.h"

/* NULL if there is no such endpoint. */
const struct idm_endpoint *view_endpoint(const struct idm_snapshot *snapshot, uint32_t index);

/**
 * Index of the endpoint of that name, or IDM_NONE.
 * @param[in,out] hint Where it was last time; makes the usual case one comparison.
 */
uint32_t view_endpoint_by_name(const struct idm_snapshot *snapshot, struct idm_bytes name, uint32_t *hint);

struct view_rule {
	struct idm_bytes kind;
	struct idm_bytes name_space;
	struct idm_bytes name;
	struct idm_bytes file;
	uint32_t line;
};
/* The rule behind a verdict: the HTTP rule if one won, else the first rule of the entry. False: no rule. */
bool view_rule(const struct idm_snapshot *snapshot, uint32_t entry, uint32_t http_rule, struct view_rule *ret);

#endif
