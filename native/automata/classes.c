// SPDX-License-Identifier: Apache-2.0
// Bytes that no instruction tells apart form a class; rows of tables have an entry for each class.
#include "classes.h"

#include <string.h>

static bool is_word(int byte)
{
	return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') ||
	       byte == '_';
}

enum dfa_before before_of(uint8_t byte)
{
	return byte == '\n' ? BEFORE_NEWLINE : is_word(byte) ? BEFORE_WORD : BEFORE_OTHER;
}

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 31) * 0x7fb5d329728ea185ull;
	value = (value ^ value >> 27) * 0x81dadef4bc2dd44dull;
	return value ^ value >> 33;
}

// Each byte's signature sums a random number for each different range that holds it.
static void sign(const struct nfa *nfa, uint8_t *seen, uint64_t *signature)
{
	for (size_t i = 0; i < nfa->code.count; i++) {
		const struct instruction *in = &nfa->code.at[i];
		uint32_t range = in->low | (uint32_t)in->high << 8;

		if (in->op != NFA_BYTES || seen[range])
			continue;
		seen[range] = 1;
		for (uint32_t byte = in->low; byte <= in->high; byte++)
			signature[byte] += mix(range + 1);
	}
}

void classes_find(struct dfa *dfa)
{
	uint8_t *seen = pool_alloc(dfa->pool, 65536);
	uint64_t signature[256] = {0};

	sign(dfa->nfa, seen, signature);
	pool_free(dfa->pool, seen, 65536);
	dfa->classes = 0;
	for (int byte = 0; byte < 256; byte++) {
		uint32_t class = 0;

		if (dfa->nfa->asserts)
			signature[byte] += mix(0x10000 + before_of((uint8_t)byte));
		while (class < dfa->classes && signature[dfa->byte_of[class]] != signature[byte])
			class++;
		if (class == dfa->classes)
			dfa->byte_of[dfa->classes++] = (uint8_t)byte;
		dfa->map[byte] = (uint8_t)class;
	}
}
