/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking one table: sections to typed arrays, then every item once. Failing checks write a message that names
 * table, section and item.
 */
#ifndef IDMESH_ENGINE_CHECK_H
#define IDMESH_ENGINE_CHECK_H

#include "internal.h"

struct idm_check {
	const char *table; // for messages
	const uint8_t *data;
	uint64_t size;
	const char *strings; // the table's STRINGS
	uint64_t string_size;
	struct idm_error *err; // may be NULL
};

/* Each returns 0, -EINVAL or -ENOMEM. */
int idm_check_identities(struct idm_check *check, struct idm_identities *ret);
int idm_check_selectors(struct idm_check *check, struct idm_selectors *ret);
int idm_check_policies(struct idm_check *check, struct idm_policies *ret);
/* The second half of idm_check_policies(): everything about requests. */
int idm_check_l7(struct idm_check *check, struct idm_policies *policies);

/* Writes a message and returns code. */
int idm_fail(struct idm_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* "table TABLE, SECTION[index]: what"; returns -EINVAL. */
int idm_bad(const struct idm_check *check, const char *section, uint64_t index, const char *what);

/* Expected shape of a section. */
struct idm_shape {
	const char *name;
	uint32_t item_size;
	const void **items; // out
	uint32_t *count;    // out; NULL: a 64 bit count goes to count64
	uint64_t *count64;
};
/* Check the section directory and fill in the arrays. */
int idm_check_sections(struct idm_check *check, const struct idm_shape *shapes, uint32_t count);

static inline bool idm_in_range(uint64_t first, uint64_t count, uint64_t bound)
{
	return first <= bound && count <= bound - first;
}

static inline bool idm_string_fits(const struct idm_check *check, struct idm_string string)
{
	return idm_in_range(string.offset, string.size, check->string_size);
}

/*
 * Order is checked once for a whole array, so that lists which share items cost nothing twice: ends[i] is where the
 * rising run that holds item i ends.
 */
typedef bool idm_before(const void *context, uint32_t index); // true if item index - 1 may stand before item index
int idm_runs_create(const void *context, uint32_t count, idm_before *before, uint32_t **ret);

static inline bool idm_runs_hold(const uint32_t *ends, uint32_t first, uint32_t count)
{
	return count == 0 || count <= ends[first] - first;
}

#endif
