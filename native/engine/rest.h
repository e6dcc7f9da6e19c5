/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What RE2's ".*" matches: characters of UTF-8 as RE2 reads them, but no newline. Many patterns end in it, so the
 * matches of one text find out once, when first asked, how far it is so.
 */
#ifndef IDMESH_ENGINE_REST_H
#define IDMESH_ENGINE_REST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rest {
	const uint8_t *text;
	size_t size;
	size_t clean; /* the longest beginning that ".*" matches */
	bool known;
};

/* Length of the longest beginning of a text that ".*" matches. */
size_t rest_clean_size(const uint8_t *text, size_t size);

static inline size_t rest_clean(struct rest *rest)
{
	if (!rest->known) {
		rest->clean = rest_clean_size(rest->text, rest->size);
		rest->known = true;
	}
	return rest->clean;
}

/* Whether ".*" matches the bytes from first up to last, where first is between two characters. */
static inline bool rest_is_clean(struct rest *rest, size_t first, size_t last)
{
	size_t clean;

	if (first == last)
		return true;
	clean = rest_clean(rest);
	if (first <= clean)
		return last <= clean;
	return rest_clean_size(rest->text + first, last - first) == last - first;
}

struct idm_matcher;
/* idm_matcher_match() for one of several matchers of the text of `rest`. */
uint32_t rest_match(const struct idm_matcher *matcher, struct rest *rest);

#endif
