/* SPDX-License-Identifier: Apache-2.0 */
/* Building matchers: what ext_authz/compiler/matcher.py calls. */
#ifndef IDMESH_AUTOMATA_CDEF_H
#define IDMESH_AUTOMATA_CDEF_H

#include <stdint.h>

enum idm_build_error {
	IDM_BUILD_OK = 0,
	IDM_BUILD_COST = 1,   /* dearer than limit at match time */
	IDM_BUILD_SIZE = 2,   /* automata larger than the limits of one build */
	IDM_BUILD_MEMORY = 3, /* the machine has no more memory */
};

struct idm_build_result {
	uint8_t *blob; /* to be given to idm_matcher_free(); NULL on error */
	uint32_t size;
	uint32_t cost; /* in the unit of idm_matcher.cost */
	uint32_t limit;
	uint32_t pattern; /* on error: the index to blame, or IDM_NONE */
	uint32_t automata;
	uint32_t shared; /* of cost: what several matchers of one text pay once */
};

/**
 * Compile patterns to a matcher (idmesh/matcher.h). Outcomes are their indexes; of equal patterns the first counts.
 * @param[in] code  Prefix code of all patterns one after the other (native/automata/code.h).
 * @param[in] sizes Words of each.
 * @return IDM_BUILD_OK or the reason.
 */
int idm_matcher_build(const uint32_t *code, const uint32_t *sizes, uint32_t count, struct idm_build_result *ret);
void idm_matcher_free(uint8_t *blob);

#endif
