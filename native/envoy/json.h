/* SPDX-License-Identifier: Apache-2.0 */
/* One flat JSON object into typed fields: what a configuration of ours is, and nothing a configuration is not. */
#ifndef IDMESH_ENVOY_JSON_H
#define IDMESH_ENVOY_JSON_H

#include <stdbool.h>
#include <stddef.h>

#include "idmesh/engine.h"

struct text_list {
	char **items;
	size_t count;
};

enum json_type { JSON_TEXT, JSON_FLAG, JSON_NUMBER, JSON_LIST };

/* out: char ** (owned by the caller afterwards), bool *, uint64_t *, struct text_list *. */
struct json_field {
	const char *name;
	enum json_type type;
	void *out;
};

/**
 * Read an object. Unknown and repeated keys, other types and trailing bytes are errors; empty text is an empty object.
 * @param[out] why Reason, if false.
 */
bool json_read(struct idm_bytes text, const struct json_field *fields, size_t field_count, struct idm_error *why);
void text_list_deinit(struct text_list *list);

#endif
