/* SPDX-License-Identifier: Apache-2.0 */
/* Who asks, for what, and what the engine says of it. */
#ifndef IDMESH_SERVICE_JUDGE_H
#define IDMESH_SERVICE_JUDGE_H

#include "idmesh/check.h"
#include "authz_request.h"

/* Last endpoint looked up by name, so that a route's fixed destination costs one comparison; and peers by name. */
struct name_cache {
	uint8_t digest[32];
	char name[256];
	size_t name_size;
	uint32_t endpoint;
	struct idm_peer_cache peers;
};

/* One end of the connection in the snapshot. */
struct end {
	uint32_t identity;
	uint32_t endpoint; /* index, or IDM_NONE */
	uint32_t family; /* of the address it was found by: 4, 6, or 0 where a name was given */
	uint8_t address[16];
};

struct judged {
	struct end source;
	struct end destination;
	struct idm_peer peer;
	uint32_t port;
	uint32_t error; /* enum idm_check_error */
	uint32_t direction; /* of the verdict that counts */
	uint32_t count; /* verdicts: 2 where both directions were judged */
	uint32_t shown; /* index of the one that counts */
	uint32_t drop_reason;
	bool allowed;
	bool audit;
	struct idm_verdict verdicts[2];
};

/** Decide a request. `snapshot` may be NULL: everything is denied. */
void judge(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
	   const struct request *request, struct name_cache *cache, struct judged *ret);

/* A section of a validated table. */
const void *judge_section(const struct idm_snapshot *snapshot, uint32_t table, uint32_t id, size_t *count);
/* A string of a validated table. */
struct idm_bytes judge_string(const struct idm_snapshot *snapshot, uint32_t table, uint32_t strings,
			      struct idm_string text);

#endif
