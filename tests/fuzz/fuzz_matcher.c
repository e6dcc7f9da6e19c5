// SPDX-License-Identifier: Apache-2.0
// Any bytes as a matcher's blob: either it is refused, or every match stays inside it and ends. Input: the length of
// a text (two bytes), the text, the blob. The text is also matched when repeated, to get to what long texts do.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "idmesh/matcher.h"
#include "idmesh/snapshot.h"

#define LONG_TEXT 2048u

static void match(const struct idm_matcher *blob, const uint8_t *text, size_t size)
{
	// In memory of its own size, so that reading past either end is seen.
	char *copy = malloc(size ? size : 1);
	uint32_t outcome;

	memcpy(copy, text, size);
	outcome = idm_matcher_match(blob, copy, size);
	if (outcome != IDM_NONE && outcome >= blob->outcomes)
		abort();
	free(copy);
}

static void match_repeated(const struct idm_matcher *blob, const uint8_t *text, size_t size)
{
	uint8_t repeated[LONG_TEXT];

	if (!size)
		return;
	for (size_t i = 0; i < LONG_TEXT; i++)
		repeated[i] = text[i % size];
	match(blob, repeated, LONG_TEXT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *text;
	size_t text_size;
	void *blob;

	if (size < 2)
		return 0;
	text_size = data[0] | (size_t)data[1] << 8;
	text = data + 2;
	size -= 2;
	text_size = text_size < size ? text_size : size;
	size -= text_size;
	blob = malloc(size ? size : 1);
	memcpy(blob, text + text_size, size);
	if (!idm_matcher_validate(blob, size)) {
		match(blob, text, text_size);
		match_repeated(blob, text, text_size);
	}
	free(blob);
	return 0;
}
