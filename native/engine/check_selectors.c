/* SPDX-License-Identifier: Apache-2.0 */
/* Checks table 2: selectors, and per identity those that select it. */
#include <errno.h>
#include <stdlib.h>

#include "check.h"

static int read_sections(struct idm_check *check, struct idm_selectors *ret)
{
	const struct idm_shape shapes[IDM_SEL_SECTIONS] = {
		{"SELECTORS", sizeof(*ret->selectors), (const void **)&ret->selectors, &ret->selector_count, NULL},
		{"ROWS", sizeof(*ret->rows), (const void **)&ret->rows, &ret->row_count, NULL},
		{"LISTS", sizeof(*ret->lists), (const void **)&ret->lists, &ret->list_count, NULL},
		{"STRINGS", 1, (const void **)&ret->strings, &ret->string_size, NULL},
	};

	return idm_check_sections(check, shapes, IDM_SEL_SECTIONS);
}

static bool list_rises(const void *context, uint32_t i)
{
	const uint32_t *lists = ((const struct idm_selectors *)context)->lists;

	return lists[i - 1] < lists[i];
}

static int check_rows(struct idm_check *check, const struct idm_selectors *table, const uint32_t *ends)
{
	for (uint32_t i = 0; i < table->row_count; i++) {
		const struct idm_selected *row = &table->rows[i];

		if (i && row[-1].identity >= row->identity)
			return idm_bad(check, "ROWS", i, "not rising by identity");
		if (!idm_in_range(row->first, row->count, table->list_count))
			return idm_bad(check, "ROWS", i, "selectors leave LISTS");
		if (!idm_runs_hold(ends, row->first, row->count))
			return idm_bad(check, "ROWS", i, "selectors do not rise");
	}
	return 0;
}

int idm_check_selectors(struct idm_check *check, struct idm_selectors *ret)
{
	uint32_t *ends;
	int r = read_sections(check, ret);

	if (r)
		return r;
	for (uint32_t i = 0; i < ret->selector_count; i++)
		if (!idm_string_fits(check, ret->selectors[i].text))
			return idm_bad(check, "SELECTORS", i, "text leaves STRINGS");
	for (uint32_t i = 0; i < ret->list_count; i++)
		if (ret->lists[i] >= ret->selector_count)
			return idm_bad(check, "LISTS", i, "no such selector");
	r = idm_runs_create(ret, ret->list_count, list_rises, &ends);
	if (r)
		return r;
	r = check_rows(check, ret, ends);
	free(ends);
	return r;
}
