// SPDX-License-Identifier: Apache-2.0
// Subset construction. A set holds instructions that read a byte, matches, rests and assertions that must see the
// next byte first. What a rest already answers is taken out of its set: that keeps unions small.
#include "dfa.h"

#include <stdlib.h>
#include <string.h>

#include "classes.h"

#define MEMO 64u

struct link {
	uint32_t id;
	uint32_t next;
};

struct subset {
	uint32_t *seen; // generation in which an instruction was visited
	uint32_t generation;
	VEC(uint32_t) stack;
	VEC(uint32_t) set; // result of the last closure
	VEC(struct link) links;
	uint32_t head[256];
	uint64_t hash[256];
	uint32_t target[256];
	uint16_t memo[MEMO];
	uint32_t *slots; // state + 1
	uint32_t slot_count;
};

static void spend(struct dfa *dfa, uint64_t steps)
{
	if (*dfa->work < steps) {
		*dfa->work = 0;
		longjmp(*dfa->pool->fail, 1);
	}
	*dfa->work -= steps;
}

// True, false, or -1 if it takes the next byte (after < 0) to tell.
static int holds(uint8_t kind, enum dfa_before before, enum dfa_before after)
{
	bool word_before = before == BEFORE_WORD;

	switch (kind) {
	case ASSERT_BEGIN_TEXT:
		return before == BEFORE_BEGIN;
	case ASSERT_BEGIN_LINE:
		return before == BEFORE_BEGIN || before == BEFORE_NEWLINE;
	case ASSERT_END_TEXT:
		return after == BEFORE_UNKNOWN ? -1 : after == BEFORE_BEGIN;
	case ASSERT_END_LINE:
		return after == BEFORE_UNKNOWN ? -1 : after == BEFORE_BEGIN || after == BEFORE_NEWLINE;
	case ASSERT_WORD:
		return after == BEFORE_UNKNOWN ? -1 : word_before != (after == BEFORE_WORD);
	default:
		return after == BEFORE_UNKNOWN ? -1 : word_before == (after == BEFORE_WORD);
	}
}

static void push(struct dfa *dfa, uint32_t id)
{
	struct subset *sub = dfa->subset;

	if (sub->seen[id] == sub->generation)
		return;
	sub->seen[id] = sub->generation;
	*VEC_ADD(dfa->pool, sub->stack) = id;
}

// Adds to sub->set what can be reached from the stack without reading. after: BEFORE_UNKNOWN, the kind of the next
// byte, or BEFORE_BEGIN for the end of the text.
static void close_set(struct dfa *dfa, enum dfa_before before, enum dfa_before after)
{
	struct subset *sub = dfa->subset;

	while (sub->stack.count) {
		uint32_t id = sub->stack.at[--sub->stack.count];
		const struct instruction *in = &dfa->nfa->code.at[id];

		spend(dfa, 1);
		if (in->op == NFA_SPLIT) {
			push(dfa, in->other);
			push(dfa, in->next);
			continue;
		}
		if (in->op == NFA_ASSERT) {
			int answer = holds(in->low, before, after);

			if (answer > 0)
				push(dfa, in->next);
			if (answer >= 0)
				continue;
		}
		*VEC_ADD(dfa->pool, sub->set) = id;
	}
}

static void begin_set(struct dfa *dfa)
{
	dfa->subset->generation++;
	dfa->subset->set.count = 0;
}

static int compare_ids(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void sort_ids(uint32_t *ids, size_t count)
{
	if (count > 32) {
		qsort(ids, count, sizeof(*ids), compare_ids);
		return;
	}
	for (size_t i = 1; i < count; i++) {
		uint32_t id = ids[i];
		size_t j = i;

		for (; j && ids[j - 1] > id; j--)
			ids[j] = ids[j - 1];
		ids[j] = id;
	}
}

// A rest without frame accepts whatever clean patterns could still accept: of those only lower outcomes stay, and
// of these none that scans, or else each scan would have to remember all rests.
static void prune(struct dfa *dfa)
{
	const struct instruction *code = dfa->nfa->code.at;
	struct subset *sub = dfa->subset;
	uint32_t best = NFA_NONE;
	size_t kept = 0;

	for (size_t i = 0; i < sub->set.count; i++) {
		uint32_t id = sub->set.at[i];

		if (code[id].op == NFA_REST && code[id].other == NFA_NONE &&
		    (best == NFA_NONE || code[id].owner < code[best].owner))
			best = id;
	}
	if (best == NFA_NONE)
		return;
	for (size_t i = 0; i < sub->set.count; i++) {
		uint32_t id = sub->set.at[i];
		const struct instruction *in = &code[id];

		if (id == best || !in->clean || (in->owner < code[best].owner && !in->scanning))
			sub->set.at[kept++] = id;
	}
	sub->set.count = kept;
}

static bool waits(const struct dfa *dfa, const uint32_t *ids, size_t count)
{
	for (size_t i = 0; dfa->nfa->asserts && i < count; i++) {
		if (dfa->nfa->code.at[ids[i]].op == NFA_ASSERT)
			return true;
	}
	return false;
}

static uint64_t hash_set(const uint32_t *ids, size_t count, uint8_t before)
{
	uint64_t hash = before + 1;

	for (size_t i = 0; i < count; i++) {
		hash = (hash ^ ids[i]) * 0xff51afd7ed558ccdull;
		hash ^= hash >> 32;
	}
	return hash;
}

static void grow_slots(struct dfa *dfa)
{
	struct subset *sub = dfa->subset;
	uint32_t count = sub->slot_count ? sub->slot_count * 2 : 256;
	uint32_t *slots = pool_alloc(dfa->pool, count * sizeof(*slots));

	for (uint32_t i = 0; i < dfa->states.count; i++) {
		const struct dfa_state *state = &dfa->states.at[i];
		uint64_t slot = hash_set(dfa->ids.at + state->first_id, state->id_count, state->before);

		while (slots[slot & (count - 1)])
			slot++;
		slots[slot & (count - 1)] = i + 1;
	}
	pool_free(dfa->pool, sub->slots, sub->slot_count * sizeof(*slots));
	sub->slots = slots;
	sub->slot_count = count;
}

static uint32_t new_state(struct dfa *dfa, uint8_t before)
{
	struct subset *sub = dfa->subset;
	struct dfa_state *state;

	if (dfa->states.count >= dfa->state_limit)
		longjmp(*dfa->pool->fail, 1);
	state = VEC_ADD(dfa->pool, dfa->states);
	*state = (struct dfa_state){
		.first_id = (uint32_t)dfa->ids.count, .id_count = (uint32_t)sub->set.count, .before = before,
	};
	for (size_t i = 0; i < sub->set.count; i++)
		*VEC_ADD(dfa->pool, dfa->ids) = sub->set.at[i];
	return (uint32_t)dfa->states.count - 1;
}

// Target of sub->set, which is closed up to waiting assertions.
static uint32_t intern(struct dfa *dfa, enum dfa_before before)
{
	struct subset *sub = dfa->subset;
	uint64_t slot;

	prune(dfa);
	if (!sub->set.count)
		return DFA_DEAD;
	if (sub->set.count == 1 && dfa->nfa->code.at[sub->set.at[0]].op == NFA_REST)
		return DFA_REST | sub->set.at[0];
	sort_ids(sub->set.at, sub->set.count);
	spend(dfa, sub->set.count);
	if (!waits(dfa, sub->set.at, sub->set.count))
		before = BEFORE_UNKNOWN;
	if (dfa->states.count * 2 >= sub->slot_count)
		grow_slots(dfa);
	for (slot = hash_set(sub->set.at, sub->set.count, before); sub->slots[slot & (sub->slot_count - 1)]; slot++) {
		uint32_t id = sub->slots[slot & (sub->slot_count - 1)] - 1;
		const struct dfa_state *state = &dfa->states.at[id];

		if (state->before == before && state->id_count == sub->set.count &&
		    !memcmp(dfa->ids.at + state->first_id, sub->set.at, sub->set.count * sizeof(uint32_t)))
			return id;
	}
	sub->slots[slot & (sub->slot_count - 1)] = (uint32_t)dfa->states.count + 1;
	return new_state(dfa, before);
}

// The state's instructions with rests and (given the next byte's kind) assertions opened, in sub->set.
static void open_state(struct dfa *dfa, uint32_t id, enum dfa_before after)
{
	struct dfa_state state = dfa->states.at[id];
	struct subset *sub = dfa->subset;

	begin_set(dfa);
	for (uint32_t i = 0; i < state.id_count; i++)
		push(dfa, dfa->ids.at[state.first_id + i]);
	close_set(dfa, state.before, after);
	for (size_t i = 0; i < sub->set.count; i++) {
		const struct instruction *in = &dfa->nfa->code.at[sub->set.at[i]];

		if (in->op == NFA_REST) {
			push(dfa, in->next);
			close_set(dfa, state.before, after);
		}
	}
}

static uint32_t accept_of(struct dfa *dfa, uint32_t id)
{
	struct subset *sub = dfa->subset;
	uint32_t accept = NFA_NONE;

	open_state(dfa, id, BEFORE_BEGIN);
	for (size_t i = 0; i < sub->set.count; i++) {
		const struct instruction *in = &dfa->nfa->code.at[sub->set.at[i]];

		if ((in->op == NFA_MATCH || (in->op == NFA_REST && in->other == NFA_NONE)) && in->owner < accept)
			accept = in->owner;
	}
	return accept;
}

static void add_link(struct dfa *dfa, uint32_t class, uint32_t id)
{
	struct subset *sub = dfa->subset;

	*VEC_ADD(dfa->pool, sub->links) = (struct link){.id = id, .next = sub->head[class]};
	sub->head[class] = (uint32_t)sub->links.count - 1;
	sub->hash[class] = (sub->hash[class] + id + 1) * 0xff51afd7ed558ccdull;
	sub->hash[class] ^= sub->hash[class] >> 31;
}

// Sorts where the opened set leads into one list for each class.
static void distribute(struct dfa *dfa, uint32_t first_class, uint32_t last_class)
{
	struct subset *sub = dfa->subset;

	for (size_t i = 0; i < sub->set.count; i++) {
		const struct instruction *in = &dfa->nfa->code.at[sub->set.at[i]];

		if (in->op != NFA_BYTES)
			continue;
		if (in->low == in->high) {
			uint32_t class = dfa->map[in->low];

			if (class >= first_class && class <= last_class)
				add_link(dfa, class, in->next);
			continue;
		}
		spend(dfa, last_class - first_class + 1);
		for (uint32_t class = first_class; class <= last_class; class++) {
			if (dfa->byte_of[class] >= in->low && dfa->byte_of[class] <= in->high)
				add_link(dfa, class, in->next);
		}
	}
}

static bool same_list(const struct subset *sub, uint32_t a, uint32_t b)
{
	while (a != NFA_NONE && b != NFA_NONE) {
		if (sub->links.at[a].id != sub->links.at[b].id)
			return false;
		a = sub->links.at[a].next;
		b = sub->links.at[b].next;
	}
	return a == b;
}

static uint32_t target_of_list(struct dfa *dfa, uint32_t class)
{
	struct subset *sub = dfa->subset;
	enum dfa_before before = dfa->nfa->asserts ? before_of(dfa->byte_of[class]) : BEFORE_UNKNOWN;
	uint16_t *memo = &sub->memo[sub->hash[class] >> 8 & (MEMO - 1)];

	if (!dfa->nfa->asserts && *memo && same_list(sub, sub->head[*memo - 1], sub->head[class]))
		return sub->target[*memo - 1];
	begin_set(dfa);
	for (uint32_t link = sub->head[class]; link != NFA_NONE; link = sub->links.at[link].next)
		push(dfa, sub->links.at[link].id);
	close_set(dfa, before, BEFORE_UNKNOWN);
	sub->target[class] = intern(dfa, before);
	*memo = (uint16_t)(class + 1);
	return sub->target[class];
}

static void begin_lists(struct subset *sub)
{
	memset(sub->head, 0xff, sizeof(sub->head));
	memset(sub->hash, 0, sizeof(sub->hash));
	memset(sub->memo, 0, sizeof(sub->memo));
	sub->links.count = 0;
}

static void expand(struct dfa *dfa, uint32_t id)
{
	struct subset *sub = dfa->subset;
	bool waiting = dfa->states.at[id].before != BEFORE_UNKNOWN;
	uint32_t first = (uint32_t)dfa->moves.count;

	begin_lists(sub);
	if (waiting) {
		for (uint32_t class = 0; class < dfa->classes; class++) {
			open_state(dfa, id, before_of(dfa->byte_of[class]));
			distribute(dfa, class, class);
		}
	} else {
		open_state(dfa, id, BEFORE_UNKNOWN);
		distribute(dfa, 0, dfa->classes - 1);
	}
	for (uint32_t class = 0; class < dfa->classes; class++) {
		uint32_t target = sub->head[class] == NFA_NONE ? DFA_DEAD : target_of_list(dfa, class);

		if (target != DFA_DEAD)
			*VEC_ADD(dfa->pool, dfa->moves) = (struct dfa_move){.target = target, .class = (uint8_t)class};
	}
	dfa->states.at[id].first_move = first;
	dfa->states.at[id].move_count = (uint32_t)dfa->moves.count - first;
	dfa->states.at[id].accept = accept_of(dfa, id);
}

void dfa_build(struct dfa *dfa)
{
	struct subset *sub = pool_alloc(dfa->pool, sizeof(*sub));

	dfa->subset = sub;
	sub->seen = pool_alloc(dfa->pool, dfa->nfa->code.count * sizeof(*sub->seen));
	classes_find(dfa);
	begin_set(dfa);
	push(dfa, dfa->nfa->start);
	close_set(dfa, BEFORE_BEGIN, BEFORE_UNKNOWN);
	dfa->start = intern(dfa, BEFORE_BEGIN);
	for (uint32_t id = 0; id < dfa->states.count; id++)
		expand(dfa, id);
}

uint32_t dfa_target(const struct dfa *dfa, uint32_t state, uint32_t class)
{
	const struct dfa_state *at = &dfa->states.at[state];
	const struct dfa_move *moves = dfa->moves.at + at->first_move;
	uint32_t low = 0, high = at->move_count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (moves[middle].class < class)
			low = middle + 1;
		else
			high = middle;
	}
	return low < at->move_count && moves[low].class == class ? moves[low].target : DFA_DEAD;
}
