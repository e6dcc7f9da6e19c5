// SPDX-License-Identifier: Apache-2.0
// ".*" over the rest of a text. ASCII is looked at eight bytes at a time; other text goes through a little automaton
// stepped by shifts, as idmesh/automaton.h explains for loops.
#include "rest.h"

#include <string.h>

#include "idmesh/automaton.h"

#define OUT ((uint64_t)IDM_LOOP_OUT)
// Where the states lead: between characters, and with one, two or three bytes of a character still to come.
#define STEP(between, one, two, three) \
	((uint64_t)(between) | (uint64_t)(one) << 6 | (uint64_t)(two) << 12 | (uint64_t)(three) << 18 | OUT << OUT)

// Bounds as RE2's for U+0080 to U+10FFFF (Compiler::Add_80_10ffff).
static const uint64_t steps[256] = {
	[0x00 ... 0x09] = STEP(0, OUT, OUT, OUT),
	[0x0a] = STEP(OUT, OUT, OUT, OUT),
	[0x0b ... 0x7f] = STEP(0, OUT, OUT, OUT),
	[0x80 ... 0xbf] = STEP(OUT, 0, 6, 12),
	[0xc0 ... 0xc1] = STEP(OUT, OUT, OUT, OUT),
	[0xc2 ... 0xdf] = STEP(6, OUT, OUT, OUT),
	[0xe0 ... 0xef] = STEP(12, OUT, OUT, OUT),
	[0xf0 ... 0xf4] = STEP(18, OUT, OUT, OUT),
	[0xf5 ... 0xff] = STEP(OUT, OUT, OUT, OUT),
};

#define ONES 0x0101010101010101ull
#define TOPS 0x8080808080808080ull

// Nonzero if one of eight bytes is a newline or above ASCII.
static inline uint64_t unusual(uint64_t word)
{
	uint64_t newline = word ^ ONES * '\n';

	return (((newline - ONES) & ~newline) | word) & TOPS;
}

static bool slow(const uint8_t *text, size_t size)
{
	uint64_t state = 0;

	for (size_t i = 0; i < size; i++)
		state = steps[text[i]] >> state & 63;
	return !state;
}

bool rest_is_clean(const uint8_t *text, size_t size)
{
	size_t at = 0;
	uint64_t word;

	for (; size - at >= sizeof(word); at += sizeof(word)) {
		memcpy(&word, text + at, sizeof(word));
		if (unusual(word))
			break;
	}
	return slow(text + at, size - at);
}
