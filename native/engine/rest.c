// SPDX-License-Identifier: Apache-2.0
// ".*" at speed. ASCII is looked at eight bytes at a time. Other text goes through a little automaton stepped by
// shifts (idmesh/automaton.h, loops), in four lanes: as every character starts with a byte of its own kind, a lane
// can begin anywhere between two.
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
#define LANES 4u
#define BLOCK 512u

// Nonzero if one of eight bytes is a newline or above ASCII.
static inline uint64_t unusual(uint64_t word)
{
	uint64_t newline = word ^ ONES * '\n';

	return (((newline - ONES) & ~newline) | word) & TOPS;
}

static size_t ascii_size(const uint8_t *text, size_t size)
{
	size_t at = 0;
	uint64_t word;

	for (; size - at >= sizeof(word); at += sizeof(word)) {
		memcpy(&word, text + at, sizeof(word));
		if (unusual(word))
			break;
	}
	return at;
}

// Byte by byte; returns the end of the last whole character.
static size_t stepped_size(const uint8_t *text, size_t size)
{
	uint64_t state = 0;
	size_t whole = 0;

	for (size_t i = 0; i < size; i++) {
		state = steps[text[i]] >> state & 63;
		if (!state)
			whole = i + 1;
		else if (state == OUT)
			break;
	}
	return whole;
}

// The nearest place at or before `at` where a character starts, if it is near.
static size_t character_start(const uint8_t *text, size_t at)
{
	for (int i = 0; i < 3 && at && (text[at] & 0xc0) == 0x80; i++)
		at--;
	return at;
}

// Whether BLOCK bytes, and those of a character they may end in the middle of, are clean. Text goes on behind them.
// Returns the end of the last whole character, or 0 if they are not.
static size_t block_size(const uint8_t *text)
{
	uint64_t state[LANES] = {0}, bad = 0;
	size_t start[LANES + 1];

	for (uint32_t lane = 0; lane <= LANES; lane++)
		start[lane] = lane ? character_start(text, lane * (BLOCK / LANES)) : 0;
	for (size_t i = 0; i < BLOCK / LANES - 3; i++) {
		for (uint32_t lane = 0; lane < LANES; lane++)
			state[lane] = steps[text[start[lane] + i]] >> state[lane] & 63;
	}
	for (uint32_t lane = 0; lane < LANES; lane++) {
		for (size_t i = start[lane] + BLOCK / LANES - 3; i < start[lane + 1]; i++)
			state[lane] = steps[text[i]] >> state[lane] & 63;
		bad |= state[lane];
	}
	return bad ? 0 : start[LANES];
}

size_t rest_clean_size(const uint8_t *text, size_t size)
{
	size_t at = ascii_size(text, size);

	while (size - at > BLOCK) {
		size_t block = block_size(text + at);

		if (!block)
			break;
		at += block;
		at += ascii_size(text + at, size - at);
	}
	// What is left is short, or ends within the next block.
	return at + stepped_size(text + at, size - at);
}
