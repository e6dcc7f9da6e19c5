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
	uint32_t cost;      /* worst cost of one match of 8 KiB, in units of 96 ns (64 steps of a near table) */
};

/**
 * Check a blob once; afterwards idm_matcher_match() trusts it.
 * @return 0, -EINVAL, or -ENOMEM.
 */
int idm_matcher_validate(const void *blob, size_t size);

/**
 * Full match of text against all patterns.
 * @param[in] blob Validated, 8-byte aligned.
 * @return A pattern's number, or IDM_NONE. Of several that match, literals come first, then those that can be read
 *         from a fixed start: of these the lowest; of patterns that look for something anywhere, one that is found.
 */
uint32_t idm_matcher_match(const struct idm_matcher *blob, const char *text, size_t size);

#endif
