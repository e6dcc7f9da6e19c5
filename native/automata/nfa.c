// SPDX-License-Identifier: Apache-2.0
// Elements to instructions, from the last to be read to the first, so that each knows what follows it.
#include "nfa.h"

#include <string.h>

uint32_t nfa_emit(struct nfa *nfa, uint8_t op, uint32_t next, uint32_t other)
{
	if (nfa->code.count >= nfa->limit)
		longjmp(*nfa->pool->fail, 1);
	*VEC_ADD(nfa->pool, nfa->code) = (struct instruction){
		.op = op, .next = next, .other = other,
		.owner = nfa->owner, .clean = nfa->clean, .scanning = nfa->scanning,
	};
	return (uint32_t)nfa->code.count - 1;
}

uint32_t nfa_byte(struct nfa *nfa, uint8_t low, uint8_t high, uint32_t next)
{
	uint32_t id = nfa_emit(nfa, NFA_BYTES, next, NFA_NONE);

	nfa->code.at[id].low = low;
	nfa->code.at[id].high = high;
	return id;
}

// As nfa_byte(), but one instruction for equal ones of the same class.
static uint32_t shared_byte(struct nfa *nfa, uint8_t low, uint8_t high, uint32_t next)
{
	uint32_t slot = (low * 31u + high * 7u + next * 0x9e3779b1u) >> 4 & 255;
	uint32_t id = nfa->recent[slot];

	if (id >= nfa->recent_from && id < nfa->code.count) {
		const struct instruction *old = &nfa->code.at[id];

		if (old->op == NFA_BYTES && old->low == low && old->high == high && old->next == next)
			return id;
	}
	nfa->recent[slot] = nfa_byte(nfa, low, high, next);
	return nfa->recent[slot];
}

// Ways to read one character, collected as alternatives.
struct ways {
	struct nfa *nfa;
	uint32_t next;
	uint32_t entry; // NFA_NONE: no way yet
};

static void add_way(struct ways *ways, const uint8_t *low, const uint8_t *high, int count)
{
	uint32_t id = ways->next;

	for (int i = 0; i < count; i++) {
		int byte = ways->nfa->backward ? i : count - 1 - i;

		id = shared_byte(ways->nfa, low[byte], high[byte], id);
	}
	ways->entry = ways->entry == NFA_NONE ? id : nfa_emit(ways->nfa, NFA_SPLIT, id, ways->entry);
}

static int utf8(uint32_t point, uint8_t *ret)
{
	static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
	int count = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;

	for (int i = count - 1; i > 0; i--, point >>= 6)
		ret[i] = 0x80 | (point & 0x3f);
	ret[0] = (uint8_t)(lead[count] | point);
	return count;
}

// RE2 reads the whole range above ASCII without looking for overlong forms (Compiler::Add_80_10ffff).
static void add_all_above_ascii(struct ways *ways)
{
	static const uint8_t lead[][2] = {{0xc2, 0xdf}, {0xe0, 0xef}, {0xf0, 0xf4}};

	for (int i = 0; i < 3; i++) {
		uint8_t low[4] = {lead[i][0], 0x80, 0x80, 0x80}, high[4] = {lead[i][1], 0xbf, 0xbf, 0xbf};

		add_way(ways, low, high, i + 2);
	}
}

// Cuts a range where lengths and leading bytes change, as RE2 does (Compiler::AddRuneRangeUTF8).
static void add_range(struct ways *ways, uint32_t low, uint32_t high)
{
	static const uint32_t last[] = {0x7f, 0x7ff, 0xffff};
	uint8_t low_bytes[4], high_bytes[4];
	int count;

	if (low == 0x80 && high == 0x10ffff) {
		add_all_above_ascii(ways);
		return;
	}
	for (int i = 0; i < 3; i++) {
		if (low <= last[i] && last[i] < high) {
			add_range(ways, low, last[i]);
			add_range(ways, last[i] + 1, high);
			return;
		}
	}
	for (int i = 1; high >= 0x80 && i < 4; i++) {
		uint32_t mask = (1u << (6 * i)) - 1;

		if ((low & ~mask) == (high & ~mask))
			continue;
		if (low & mask) {
			add_range(ways, low, low | mask);
			add_range(ways, (low | mask) + 1, high);
			return;
		}
		if ((high & mask) != mask) {
			add_range(ways, low, (high & ~mask) - 1);
			add_range(ways, high & ~mask, high);
			return;
		}
	}
	count = utf8(low, low_bytes);
	utf8(high, high_bytes);
	add_way(ways, low_bytes, high_bytes, count);
}

static uint32_t compile_class(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	struct ways ways = {.nfa = nfa, .next = next, .entry = NFA_NONE};

	nfa->recent_from = (uint32_t)nfa->code.count;
	for (uint32_t i = 0; i < at[1]; i++)
		add_range(&ways, at[2 + 2 * i], at[3 + 2 * i]);
	if (ways.entry != NFA_NONE)
		return ways.entry;
	// A class of nothing: no byte is below itself.
	return nfa_byte(nfa, 1, 0, next);
}

static const uint32_t dot[] = {CODE_CLASS, 2, 0, 9, 11, 0x10ffff};

uint32_t nfa_dot_star(struct nfa *nfa, uint32_t next)
{
	uint32_t loop = nfa_emit(nfa, NFA_SPLIT, NFA_NONE, next);
	uint32_t entry = compile_class(nfa, dot, loop);

	// Only now: compiling moves the code.
	nfa->code.at[loop].next = entry;
	return loop;
}

uint32_t nfa_rest(struct nfa *nfa, uint32_t frame, uint32_t tail)
{
	uint32_t rest = nfa_emit(nfa, NFA_REST, NFA_NONE, frame);
	uint32_t entry = compile_class(nfa, dot, rest);

	if (tail != NFA_NONE)
		entry = nfa_emit(nfa, NFA_SPLIT, entry, tail);
	nfa->code.at[rest].next = entry;
	return rest;
}

static uint32_t compile_star(struct nfa *nfa, const uint32_t *inner, uint32_t next)
{
	uint32_t loop, entry;

	if (code_is_dot(inner) && nfa->code.at[next].op == NFA_MATCH)
		return nfa_rest(nfa, NFA_NONE, NFA_NONE);
	loop = nfa_emit(nfa, NFA_SPLIT, NFA_NONE, next);
	entry = nfa_compile(nfa, inner, loop);
	nfa->code.at[loop].next = entry;
	return loop;
}

static uint32_t compile_plus(struct nfa *nfa, const uint32_t *inner, uint32_t next)
{
	uint32_t loop, entry;

	if (code_is_dot(inner))
		return nfa_compile(nfa, inner, compile_star(nfa, inner, next));
	loop = nfa_emit(nfa, NFA_SPLIT, NFA_NONE, next);
	entry = nfa_compile(nfa, inner, loop);
	nfa->code.at[loop].next = entry;
	return entry;
}

static uint32_t compile_repeat(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	uint32_t low = at[1], high = at[2], entry = next;
	const uint32_t *inner = at + 3;

	if (high == CODE_UNBOUNDED) {
		entry = compile_star(nfa, inner, next);
	} else {
		for (uint32_t i = low; i < high; i++)
			entry = nfa_emit(nfa, NFA_SPLIT, nfa_compile(nfa, inner, entry), next);
	}
	for (uint32_t i = 0; i < low; i++)
		entry = nfa_compile(nfa, inner, entry);
	return entry;
}

static uint32_t compile_cat(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	const uint32_t *element = at + 2;
	size_t *offsets = pool_alloc(nfa->pool, (at[1] + 1) * sizeof(*offsets));
	uint32_t count = at[1];

	for (uint32_t i = 0; i < count; i++)
		offsets[i + 1] = offsets[i] + code_size(element + offsets[i]);
	for (uint32_t i = 0; i < count; i++)
		next = nfa_compile(nfa, element + offsets[nfa->backward ? i : count - 1 - i], next);
	pool_free(nfa->pool, offsets, (count + 1) * sizeof(*offsets));
	return next;
}

static uint32_t compile_alt(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	const uint32_t *element = at + 2;
	uint32_t entry = NFA_NONE;

	for (uint32_t i = 0; i < at[1]; i++, element += code_size(element)) {
		uint32_t choice = nfa_compile(nfa, element, next);

		entry = entry == NFA_NONE ? choice : nfa_emit(nfa, NFA_SPLIT, choice, entry);
	}
	return entry == NFA_NONE ? nfa_byte(nfa, 1, 0, next) : entry;
}

static uint32_t compile_literal(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	for (uint32_t i = 0; i < at[1]; i++) {
		uint8_t byte = (uint8_t)at[2 + (nfa->backward ? i : at[1] - 1 - i)];

		next = nfa_byte(nfa, byte, byte, next);
	}
	return next;
}

static uint32_t compile_assert(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	// Backwards the beginning is the end.
	static const uint8_t turned[] = {
		[ASSERT_BEGIN_TEXT] = ASSERT_END_TEXT, [ASSERT_END_TEXT] = ASSERT_BEGIN_TEXT,
		[ASSERT_BEGIN_LINE] = ASSERT_END_LINE, [ASSERT_END_LINE] = ASSERT_BEGIN_LINE,
		[ASSERT_WORD] = ASSERT_WORD, [ASSERT_NO_WORD] = ASSERT_NO_WORD,
	};
	uint32_t id = nfa_emit(nfa, NFA_ASSERT, next, NFA_NONE);

	nfa->asserts = true;
	nfa->code.at[id].low = nfa->backward ? turned[at[1]] : (uint8_t)at[1];
	return id;
}

uint32_t nfa_compile(struct nfa *nfa, const uint32_t *at, uint32_t next)
{
	switch (at[0]) {
	case CODE_LITERAL:
		return compile_literal(nfa, at, next);
	case CODE_CLASS:
		return compile_class(nfa, at, next);
	case CODE_CAT:
		return compile_cat(nfa, at, next);
	case CODE_ALT:
		return compile_alt(nfa, at, next);
	case CODE_STAR:
		return compile_star(nfa, at + 1, next);
	case CODE_PLUS:
		return compile_plus(nfa, at + 1, next);
	case CODE_QUEST:
		return nfa_emit(nfa, NFA_SPLIT, nfa_compile(nfa, at + 1, next), next);
	case CODE_REPEAT:
		return compile_repeat(nfa, at, next);
	default:
		return compile_assert(nfa, at, next);
	}
}
