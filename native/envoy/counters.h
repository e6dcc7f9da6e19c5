/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stats idmesh.allowed, denied, redirected and error.
 *
 * Each decision counts once as allowed, denied or error (a denial because something inside failed); redirected counts
 * beside them the decisions at a port with L7 rules. Upstream filters count in their cluster's scope,
 * cluster.NAME.idmesh.*.
 */
#ifndef IDMESH_ENVOY_COUNTERS_H
#define IDMESH_ENVOY_COUNTERS_H

#include "door.h"

enum counter { COUNT_ALLOWED, COUNT_DENIED, COUNT_ERROR, COUNT_REDIRECTED, COUNTS };

static const struct idm_bytes counter_names[COUNTS] = {
	[COUNT_ALLOWED] = {"allowed", 7},
	[COUNT_DENIED] = {"denied", 6},
	[COUNT_ERROR] = {"error", 5},
	[COUNT_REDIRECTED] = {"redirected", 10},
};

static inline enum counter counter_of(const struct decision *decision)
{
	if (decision->error)
		return COUNT_ERROR;
	return decision->allowed ? COUNT_ALLOWED : COUNT_DENIED;
}

static inline bool counts_redirected(const struct decision *decision)
{
	return decision_last(decision)->l4_verdict == IDM_REDIRECTED;
}

#endif
