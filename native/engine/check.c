/* SPDX-License-Identifier: Apache-2.0 */
/* Helpers of the loader's checks: messages, section directories, order. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

int idm_fail(struct idm_error *err, int code, const char *format, ...)
{
	if (err) {
		va_list args;

		va_start(args, format);
		vsnprintf(err->message, sizeof(err->message), format, args);
		va_end(args);
	}
	return code;
}

int idm_bad(const struct idm_check *check, const char *section, uint64_t index, const char *what)
{
	return idm_fail(check->err, -EINVAL, "table %s, %s[%llu]: %s", check->table, section,
			(unsigned long long)index, what);
}

static int check_section(struct idm_check *check, const struct idm_shape *shape, uint32_t id)
{
	struct idm_section section;

	memcpy(&section, check->data + id * sizeof(section), sizeof(section));
	if (section.id != id)
		return idm_bad(check, shape->name, 0, "section out of order");
	if (section.item_size != shape->item_size)
		return idm_bad(check, shape->name, 0, "item size differs from this engine's");
	if (section.offset % 8)
		return idm_bad(check, shape->name, 0, "section not aligned to 8 bytes");
	// Indexes are 32 bit and IDM_NONE is none of them; only the automata's bytes may be more.
	if (shape->count && section.count >= IDM_NONE)
		return idm_bad(check, shape->name, 0, "too many items");
	if (section.count > check->size / shape->item_size ||
	    !idm_in_range(section.offset, section.count * shape->item_size, check->size))
		return idm_bad(check, shape->name, 0, "section leaves the table");
	*shape->items = check->data + section.offset;
	if (shape->count)
		*shape->count = (uint32_t)section.count;
	else
		*shape->count64 = section.count;
	return 0;
}

int idm_check_sections(struct idm_check *check, const struct idm_shape *shapes, uint32_t count)
{
	if (check->size < count * sizeof(struct idm_section))
		return idm_fail(check->err, -EINVAL, "table %s: shorter than its section directory", check->table);
	for (uint32_t id = 0; id < count; id++) {
		int r = check_section(check, &shapes[id], id);

		if (r)
			return r;
	}
	// STRINGS is the last section of every table.
	check->strings = *shapes[count - 1].items;
	check->string_size = *shapes[count - 1].count;
	return 0;
}

int idm_runs_create(const void *context, uint32_t count, idm_before *before, uint32_t **ret)
{
	uint32_t *ends = malloc((count ? count : 1) * sizeof(*ends));

	if (!ends)
		return -ENOMEM;
	for (uint32_t i = count; i-- > 0;)
		ends[i] = i + 1 < count && before(context, i + 1) ? ends[i + 1] : i + 1;
	*ret = ends;
	return 0;
}
