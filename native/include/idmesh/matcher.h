/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matchers: many regular expressions (RE2 syntax and meaning, full match), compiled ahead into one
 * position-independent blob of the snapshot. Matching neither allocates nor locks, and its cost is known
 * when the blob is built.
 */
#ifndef IDMESH_MATCHER_H
#define IDMESH_MATCHER_H

#include <stddef.h>
#include <stdint.h>

/* Blob head; the rest is the matcher's own (native/engine/matcher.c). */
struct idm_matcher {
	uint32_t magic;
	uint32_t size;      /* whole blob, a multiple of 8 */
	uint32_t outcomes;  /* patterns it was built from */
	uint32_t cost;      /* worst cost of one match of 8 KiB, in units of 64 byte steps */
};

/**
 * Check a blob once; afterwards idm_matcher_match() trusts it.
 * @return 0, or -EINVAL.
 */
int idm_matcher_validate(const void *blob, size_t size);

/**
 * Full match of text against all patterns.
 * @param[in] blob Validated, 8-byte aligned.
 * @return A pattern's number (lowest where several match within one automaton), or IDM_NONE.
 */
uint32_t idm_matcher_match(const struct idm_matcher *blob, const char *text, size_t size);

#endif
