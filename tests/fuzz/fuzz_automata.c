// SPDX-License-Identifier: Apache-2.0
// Any patterns to the builder: it ends within its limits, and what it builds is valid and can be matched. The code of
// the patterns is grown from the input's bytes, so that it is always well formed, as the parser's is.
#include <stdlib.h>
#include <string.h>

#include "automata.cdef.h"
#include "code.h"
#include "feed.h"
#include "idmesh/matcher.h"

#define WORDS 4096u
#define PATTERNS 3u

struct grower {
	struct feed *feed;
	uint32_t words[WORDS];
	uint32_t count;
};

static void put(struct grower *grower, uint32_t word)
{
	if (grower->count < WORDS)
		grower->words[grower->count++] = word;
}

static void put_class(struct grower *grower)
{
	static const uint32_t classes[][5] = {
		{2, 0, 9, 11, 0x10ffff}, {1, '0', '9'}, {2, 0, 46, 48, 0x10ffff}, {1, 0x80, 0x7ff},
		{1, 0, 0x10ffff}, {0}, {2, 'a', 'c', 0xe9, 0x10fff}, {1, 0x7f, 0x10ffff},
	};
	const uint32_t *class = classes[feed_number(grower->feed, 1) % 8];

	put(grower, CODE_CLASS);
	for (uint32_t i = 0; i <= 2 * class[0]; i++)
		put(grower, class[i]);
}

static void put_literal(struct grower *grower)
{
	static const char letters[] = "ab/1\n\xc3\xa9";
	uint32_t size = 1 + feed_number(grower->feed, 1) % 6;

	put(grower, CODE_LITERAL);
	put(grower, size);
	for (uint32_t i = 0; i < size; i++)
		put(grower, (uint8_t)letters[feed_number(grower->feed, 1) % 7]);
}

static void put_repeat(struct grower *grower)
{
	uint32_t low = feed_number(grower->feed, 1) % 4, more = feed_number(grower->feed, 1) % 4;

	put(grower, CODE_REPEAT);
	put(grower, low);
	put(grower, more ? low + more : CODE_UNBOUNDED);
}

static void put_element(struct grower *grower, int depth)
{
	uint32_t op = feed_number(grower->feed, 1) % 10, arguments = 1;

	if (depth > 5 || grower->count > WORDS / 2 || op == 0 || op == CODE_LITERAL) {
		put_literal(grower);
		return;
	}
	if (op == CODE_CLASS) {
		put_class(grower);
		return;
	}
	if (op == CODE_ASSERT) {
		put(grower, op);
		put(grower, feed_number(grower->feed, 1) % 6);
		return;
	}
	if (op == CODE_REPEAT) {
		put_repeat(grower);
	} else {
		put(grower, op);
		if (op == CODE_CAT || op == CODE_ALT) {
			arguments = feed_number(grower->feed, 1) % 4;
			put(grower, arguments);
		}
	}
	for (uint32_t i = 0; i < arguments; i++)
		put_element(grower, depth + 1);
}

static void check(const struct idm_build_result *built, const struct feed *rest)
{
	char *text = malloc(2048);

	if (idm_matcher_validate(built->blob, built->size))
		abort();
	for (size_t i = 0; i < 2048; i++)
		text[i] = rest->size ? (char)rest->data[i % rest->size] : 'a';
	idm_matcher_match((const struct idm_matcher *)built->blob, text, rest->size < 2048 ? rest->size : 2048);
	idm_matcher_match((const struct idm_matcher *)built->blob, text, 2048);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct feed feed = {.data = data, .size = size};
	struct grower grower = {.feed = &feed};
	uint32_t sizes[PATTERNS], count = feed_number(&feed, 1) % PATTERNS + 1;
	struct idm_build_result built;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t first = grower.count;

		for (uint32_t elements = feed_number(&feed, 1) % 5; elements; elements--)
			put_element(&grower, 0);
		sizes[i] = grower.count - first;
	}
	if (grower.count == WORDS || idm_matcher_build(grower.words, sizes, count, &built))
		return 0;
	check(&built, &feed);
	idm_matcher_free(built.blob);
	return 0;
}
