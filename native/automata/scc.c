// SPDX-License-Identifier: Apache-2.0
// Tarjan's algorithm with a stack of its own, for automata deeper than a thread's stack.
#include "scc.h"

struct visit {
	uint32_t state;
	uint32_t move;
};

struct tarjan {
	const struct dfa *dfa;
	struct scc *scc;
	uint32_t *index; // 0: not visited
	uint32_t *low;
	uint32_t next_index;
	VEC(struct visit) path;
	VEC(uint32_t) open; // visited, in no part yet
};

static void enter(struct tarjan *t, uint32_t state)
{
	t->index[state] = t->low[state] = ++t->next_index;
	*VEC_ADD(t->dfa->pool, t->path) = (struct visit){.state = state};
	*VEC_ADD(t->dfa->pool, t->open) = state;
}

static void close_part(struct tarjan *t, uint32_t state)
{
	uint32_t member;

	do {
		member = t->open.at[--t->open.count];
		t->scc->part_of[member] = t->scc->count;
	} while (member != state);
	t->scc->count++;
}

static void leave(struct tarjan *t)
{
	uint32_t state = t->path.at[--t->path.count].state;

	if (t->low[state] == t->index[state])
		close_part(t, state);
	if (t->path.count) {
		uint32_t above = t->path.at[t->path.count - 1].state;

		if (t->low[state] < t->low[above])
			t->low[above] = t->low[state];
	}
}

static void visit_from(struct tarjan *t, uint32_t root)
{
	enter(t, root);
	while (t->path.count) {
		struct visit *at = &t->path.at[t->path.count - 1];
		const struct dfa_state *state = &t->dfa->states.at[at->state];
		uint32_t target;

		if (at->move == state->move_count) {
			leave(t);
			continue;
		}
		target = t->dfa->moves.at[state->first_move + at->move++].target;
		if (target & DFA_REST)
			continue;
		if (!t->index[target])
			enter(t, target);
		else if (t->scc->part_of[target] == DFA_DEAD && t->index[target] < t->low[at->state])
			t->low[at->state] = t->index[target];
	}
}

// Members by part, by counting.
static void sort_members(const struct dfa *dfa, struct scc *scc)
{
	uint32_t count = (uint32_t)dfa->states.count, *next;

	scc->first = pool_alloc(dfa->pool, (scc->count + 1) * sizeof(*scc->first));
	scc->members = pool_alloc(dfa->pool, count * sizeof(*scc->members));
	next = pool_alloc(dfa->pool, scc->count * sizeof(*next));
	for (uint32_t i = 0; i < count; i++)
		scc->first[scc->part_of[i] + 1]++;
	for (uint32_t i = 0; i < scc->count; i++)
		scc->first[i + 1] += scc->first[i];
	for (uint32_t i = 0; i < count; i++) {
		uint32_t part = scc->part_of[i];

		scc->members[scc->first[part] + next[part]++] = i;
	}
	pool_free(dfa->pool, next, scc->count * sizeof(*next));
}

static void find_cycles(const struct dfa *dfa, struct scc *scc)
{
	scc->cyclic = pool_alloc(dfa->pool, scc->count);
	for (uint32_t i = 0; i < dfa->states.count; i++) {
		const struct dfa_state *state = &dfa->states.at[i];

		for (uint32_t m = 0; m < state->move_count; m++) {
			uint32_t target = dfa->moves.at[state->first_move + m].target;

			if (!(target & DFA_REST) && scc->part_of[target] == scc->part_of[i])
				scc->cyclic[scc->part_of[i]] = 1;
		}
	}
}

void scc_find(const struct dfa *dfa, struct scc *ret)
{
	uint32_t count = (uint32_t)dfa->states.count;
	struct tarjan t = {.dfa = dfa, .scc = ret};

	ret->count = 0;
	ret->part_of = pool_alloc(dfa->pool, count * sizeof(*ret->part_of));
	t.index = pool_alloc(dfa->pool, count * sizeof(*t.index));
	t.low = pool_alloc(dfa->pool, count * sizeof(*t.low));
	for (uint32_t i = 0; i < count; i++)
		ret->part_of[i] = DFA_DEAD;
	for (uint32_t i = 0; i < count; i++) {
		if (!t.index[i])
			visit_from(&t, i);
	}
	sort_members(dfa, ret);
	find_cycles(dfa, ret);
	pool_free(dfa->pool, t.index, count * sizeof(*t.index));
	pool_free(dfa->pool, t.low, count * sizeof(*t.low));
	VEC_DEINIT(dfa->pool, t.path);
	VEC_DEINIT(dfa->pool, t.open);
}
