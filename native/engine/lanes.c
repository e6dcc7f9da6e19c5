// SPDX-License-Identifier: Apache-2.0
// Each lane but the first begins some bytes before its part, in the scan's guess: the builder proved that by the
// start of the part it is in the state it would be in if it had read everything. Still, each lane's state at its end
// is compared with what the next one began with; if they differ the next one's work is thrown away. So a wrong
// proof, or a blob nobody proved, costs time and never a wrong answer.
#include "lanes.h"

#define LANES 8u
#define KINDS 7u

struct lane {
	size_t at;
	uint32_t row;   // entry
	uint32_t began; // entry at the start of the lane's part
	uint32_t stop;  // entry that is no row, if it came to one
	size_t stop_at;
};

static ALWAYS_INLINE uint32_t step(const char *blob, const uint8_t *map, uint32_t row, uint8_t byte)
{
	return ((const uint32_t *)(blob + row))[1 + map[byte]];
}

// Whether a character starts (or, backward, one has just been read whole) when `at` bytes were read.
static bool between_characters(const struct cursor *c, size_t at)
{
	size_t next = c->backward ? c->size - at : at;

	return next >= c->size || (c->text[next] & 0xc0) != 0x80;
}

static ALWAYS_INLINE void begin(const char *blob, const uint8_t *map, const struct idm_scan *scan,
				const struct cursor *c, size_t start, struct lane *lane)
{
	size_t at = start - scan->warm;
	uint32_t entry = scan->guess;

	for (int i = 0; i < 3 && at > c->at && !between_characters(c, at); i++)
		at--;
	for (; at < start && !(entry & KINDS); at++)
		entry = step(blob, map, entry, cursor_byte(c, at));
	*lane = (struct lane){.at = start, .row = entry, .began = entry};
	// A lane that ended before its part cannot be the one that tells: its beginning equals no row.
	if (entry & KINDS)
		lane->row = scan->guess;
}

// Steps the lanes side by side over `part` bytes. Returns the number of lanes that count: those behind one that
// stopped do not, and follow the first so that the loop stays the same.
static ALWAYS_INLINE uint32_t run(const char *blob, const uint8_t *map, const struct cursor *c, size_t part,
				  struct lane *lanes)
{
	uint32_t count = LANES;

	for (size_t i = 0; i < part; i++) {
		uint32_t entry[LANES], kinds = 0;

		for (uint32_t k = 0; k < LANES; k++) {
			entry[k] = step(blob, map, lanes[k].row, cursor_byte(c, lanes[k].at + i));
			kinds |= entry[k];
		}
		if (__builtin_expect(kinds & KINDS, 0)) {
			uint32_t k = 0;

			while (!(entry[k] & KINDS))
				k++;
			lanes[k].stop = entry[k];
			lanes[k].stop_at = lanes[k].at + i + 1;
			count = k + 1;
			if (!k)
				return count;
			for (; k < LANES; k++) {
				lanes[k].at = lanes[0].at;
				entry[k] = entry[0];
			}
		}
		for (uint32_t k = 0; k < LANES; k++)
			lanes[k].row = entry[k];
	}
	return count;
}

static ALWAYS_INLINE uint32_t run_all(const char *blob, const uint8_t *map, const struct idm_scan *scan,
				      struct cursor *c)
{
	size_t part = (c->size - c->at) / LANES, start = c->at;
	struct lane lanes[LANES];
	uint32_t count;

	lanes[0] = (struct lane){.at = start, .row = scan->row, .began = scan->row};
	for (uint32_t k = 1; k < LANES; k++)
		begin(blob, map, scan, c, start + k * part, &lanes[k]);
	count = run(blob, map, c, part, lanes);
	for (uint32_t k = 0;; k++) {
		if (lanes[k].stop) {
			c->at = lanes[k].stop_at;
			return lanes[k].stop;
		}
		c->at = start + (k + 1) * part;
		if (k + 1 == count || lanes[k].row != lanes[k + 1].began)
			return lanes[k].row;
	}
}

uint32_t lanes_run(const char *blob, const uint8_t *map, const struct idm_scan *scan, struct cursor *c)
{
	if (c->backward) {
		struct cursor copy = {.text = c->text, .size = c->size, .at = c->at, .backward = true};
		uint32_t entry = run_all(blob, map, scan, &copy);

		c->at = copy.at;
		return entry;
	} else {
		struct cursor copy = {.text = c->text, .size = c->size, .at = c->at, .backward = false};
		uint32_t entry = run_all(blob, map, scan, &copy);

		c->at = copy.at;
		return entry;
	}
}

#define BLOCK 1024u
#define BLOCK_PART (BLOCK / LANES)

// One block; false if the text may leave the loop in it. Then c and *state tell up to where it surely does not.
static ALWAYS_INLINE bool run_block(const uint64_t *table, const struct idm_loop *loop, uint64_t *state,
				    struct cursor *c)
{
	uint64_t now[LANES], began[LANES];
	size_t start = c->at;

	now[0] = began[0] = *state;
	for (uint32_t k = 1; k < LANES; k++) {
		size_t part = start + k * BLOCK_PART, at = part - loop->warm;

		for (int i = 0; i < 3 && !between_characters(c, at); i++)
			at--;
		for (began[k] = loop->guess; at < part; at++)
			began[k] = table[cursor_byte(c, at)] >> began[k] & 63;
		now[k] = began[k];
	}
	// Out stays out, so nothing needs to be asked on the way.
	for (size_t i = 0; i < BLOCK_PART; i++) {
		for (uint32_t k = 0; k < LANES; k++)
			now[k] = table[cursor_byte(c, start + k * BLOCK_PART + i)] >> now[k] & 63;
	}
	for (uint32_t k = 0; k < LANES; k++) {
		if (now[k] == IDM_LOOP_OUT)
			return false;
		c->at = start + (k + 1) * BLOCK_PART;
		*state = now[k];
		if (k + 1 < LANES && now[k] != began[k + 1])
			return false;
	}
	return true;
}

uint64_t lanes_loop(const uint64_t *table, const struct idm_loop *loop, uint64_t state, struct cursor *c)
{
	bool stays = true;

	// Copies whose direction is known to the compiler.
	if (c->backward) {
		struct cursor back = {.text = c->text, .size = c->size, .at = c->at, .backward = true};

		while (stays && back.size - back.at >= BLOCK)
			stays = run_block(table, loop, &state, &back);
		c->at = back.at;
	} else {
		struct cursor forth = {.text = c->text, .size = c->size, .at = c->at, .backward = false};

		while (stays && forth.size - forth.at >= BLOCK)
			stays = run_block(table, loop, &state, &forth);
		c->at = forth.at;
	}
	return state;
}
